// What is asked of the gateway.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status; // 0: nobody answered
  }
}

const AWAY = "The gateway does not answer. Is `draftd gateway` running?";

function headers() {
  const key = new TextEncoder().encode(sessionStorage.getItem("key") ?? "");
  // A header holds bytes: fetch refuses letters that are none, as of another keyboard's.
  return key.length ? { Authorization: `Bearer ${String.fromCharCode(...key)}` } : {};
}

async function reach(path, options) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { ...options.headers, ...headers() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, AWAY);
  }
  if (!reply.ok) {
    const body = await reply.json().catch(() => ({}));
    throw new Refused(reply.status, body.error?.message ?? `The gateway answered ${reply.status}.`);
  }
  return reply;
}

/** The daemon's full status; Refused if it, or the gateway, is away. */
export async function status() {
  try {
    return await (await reach("/status", { signal: AbortSignal.timeout(8000) })).json();
  } catch (error) {
    throw error instanceof Refused ? error : new Refused(0, AWAY);
  }
}

/** The chunks of an answer as they come. */
export async function* answer(request, signal) {
  const reply = await reach("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, stream: true, mark_drafted: true }),
    signal,
  });
  let text = "";
  for await (const part of pieces(reply.body.pipeThrough(new TextDecoderStream()))) {
    const events = (text + part).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(503, chunk.error.message);
      yield chunk;
    }
  }
  throw new Refused(0, "The gateway went away in mid-answer.");
}

async function* pieces(stream) {
  const reader = stream.getReader(); // not every browser iterates over a stream
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The gateway went away in mid-answer.");
  } finally {
    reader.releaseLock();
  }
}

/** A chunk's text in runs, [text, drafted], from the marks that say how long each token's text is. */
export function runs(chunk) {
  const text = chunk.choices[0]?.delta?.content ?? "";
  const { drafted = [], lengths = [] } = chunk.draftd ?? {};
  if (!text) return [];
  if (lengths.length !== drafted.length || !lengths.length) return [[text, false]];
  const characters = [...text]; // lengths count characters, of which some are two of JavaScript's units
  const found = [];
  let start = 0;
  const add = (end, mark) => {
    const piece = characters.slice(start, end).join("");
    start = Math.max(start, end);
    if (!piece) return;
    if (found.at(-1)?.[1] === mark) found.at(-1)[0] += piece;
    else found.push([piece, mark]);
  };
  lengths.forEach((length, index) => add(start + length, drafted[index]));
  add(characters.length, false);
  return found;
}
