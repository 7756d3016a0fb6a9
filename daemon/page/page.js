// The chat: what was said is kept for this tab, so that a reload loses nothing.

import { speed, watch } from "./figures.js";
import { answer, Refused, runs } from "./stream.js";
import { Writer } from "./writer.js";

const at = (id) => document.getElementById(id);
const talk = at("talk");
const question = at("question");
const OPTIONS = ["draft", "marks", "temperature"];

// An answer is {role, runs: [[text, drafted], …], note, wrong}; a question {role, text}.
const turns = JSON.parse(sessionStorage.getItem("turns") ?? "[]");
let running = null; // the AbortController of the answer that streams

function keep() {
  const chosen = OPTIONS.map((id) => (at(id).type === "checkbox" ? at(id).checked : at(id).value));
  try {
    sessionStorage.setItem("options", JSON.stringify(chosen));
    sessionStorage.setItem("typed", question.value);
    sessionStorage.setItem("turns", JSON.stringify(turns));
  } catch {
    // More than a browser keeps for a tab, a few megabytes: the chat goes on without.
  }
}

const words = (turn) => turn.text ?? turn.runs.map(([text]) => text).join("");

// ---- on the page

function make(tag, kind, text = "") {
  const element = document.createElement(tag);
  element.className = kind;
  element.textContent = text;
  return element;
}

/** A turn as an article; of an answer what writes into it, and its note. */
function article(turn) {
  const element = make("article", turn.role === "user" ? "you" : "answer");
  element.append(make("h2", "unseen", turn.role === "user" ? "You" : "Answer"));
  const body = make("div", "words", turn.text);
  const note = make("p", "note");
  element.append(body);
  talk.append(element);
  if (turn.role === "user") return { element };
  element.append(note);
  const writer = new Writer(body);
  turn.runs.forEach((run) => writer.add(...run));
  return { element, writer, note };
}

function explain(turn, note) {
  note.textContent = turn.note;
  note.classList.toggle("wrong", Boolean(turn.wrong));
  if (turn.wrong && turn === turns.at(-1)) {
    const again = make("button", "", "Try again");
    again.type = "button";
    again.addEventListener("click", () => {
      turns.pop();
      draw();
      respond();
    });
    note.append(again);
  }
}

function draw() {
  talk.replaceChildren();
  for (const turn of turns) {
    const { writer, note } = article(turn);
    if (!writer) continue;
    writer.finish();
    explain(turn, note);
  }
  if (!turns.length) {
    const welcome = make("p", "welcome");
    welcome.append(make("strong", "", "Ask the model on this machine"));
    welcome.append("Words that the draft guessed right are marked: they came without a pass of their own.");
    talk.append(welcome);
  }
  follows = true;
  grown();
}

let follows = true; // the reader is at the conversation's end, and stays there while it grows

function grown() {
  if (follows) requestAnimationFrame(() => { talk.scrollTop = talk.scrollHeight; });
}

talk.addEventListener("scroll", () => {
  follows = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
});

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function busy(controller) {
  running = controller;
  at("send").hidden = Boolean(controller);
  at("stop").hidden = !controller;
}

// ---- asking

async function respond() {
  const turn = { role: "assistant", runs: [], note: "", wrong: false };
  const messages = turns // a question that got no answer is left out: many templates take no two in a row
    .filter((each, index) => words(each.role === "user" ? turns[index + 1] ?? each : each))
    .map((each) => ({ role: each.role, content: words(each) }));
  turns.push(turn);
  document.querySelector(".note button")?.remove();
  const { element, writer, note } = article(turn);
  element.classList.add("writing");
  element.setAttribute("aria-busy", "true");
  follows = true;
  grown();
  const controller = new AbortController();
  busy(controller);
  const drafting = at("draft").checked;
  const told = { tokens: 0, drafted: 0, began: 0, first: 0, timings: null };
  const given = Number.parseFloat(at("temperature").value);
  const request = { messages, temperature: Number.isFinite(given) ? given : 0, speculate: drafting };
  try {
    for await (const chunk of answer(request, controller.signal)) {
      take(chunk, turn, told, writer, note, drafting);
    }
    turn.note = summary(told, drafting);
  } catch (error) {
    if (error.name === "AbortError") {
      turn.note = `Stopped. ${summary(told, drafting)}`;
    } else if (error instanceof Refused) {
      Object.assign(turn, { note: error.message, wrong: true });
      at("unlock").hidden = error.status !== 401;
    } else throw error;
  } finally {
    writer.finish();
    explain(turn, note);
    grown();
    element.classList.remove("writing");
    element.removeAttribute("aria-busy");
    busy(null);
    keep();
    if (turns.includes(turn)) at("spoken").textContent = turn.wrong ? turn.note : `${words(turn)} ${turn.note}`;
  }
}

function take(chunk, turn, told, writer, note, drafting) {
  told.timings = chunk.timings ?? told.timings;
  if (told.timings?.predicted_per_second) speed(told.timings.predicted_per_second, drafting, false);
  const fresh = runs(chunk);
  if (chunk.draftd) {
    const count = chunk.draftd.tokens.length;
    told.tokens += count;
    told.drafted += chunk.draftd.drafted.filter(Boolean).length;
    if (!told.began) Object.assign(told, { began: performance.now(), first: count });
    const seconds = (performance.now() - told.began) / 1000;
    if (seconds > 0.3) speed((told.tokens - told.first) / seconds, drafting, true);
  }
  turn.runs.push(...fresh);
  fresh.forEach((run) => writer.add(...run));
  note.textContent = counts(told, drafting);
  grown();
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function counts({ tokens, drafted }, drafting) {
  const share = tokens ? Math.round((100 * drafted) / tokens) : 0;
  return plural(tokens, "token") + (drafting ? `, ${drafted} of them drafted (${share} %)` : ", drafting off");
}

function summary(told, drafting) {
  const parts = [counts(told, drafting)];
  const timings = told.timings;
  if (timings?.predicted_per_second) parts.push(`${timings.predicted_per_second.toFixed(1)} tokens/s`);
  if (timings) parts.push(`first after ${(timings.first_token_ms / 1000).toFixed(2)} s`);
  return parts.join(" · ");
}

// ---- what people do

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || running) return;
  if (!turns.length) talk.replaceChildren();
  turns.push({ role: "user", text });
  article(turns.at(-1));
  question.value = "";
  fit();
  keep();
  respond();
});

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});

question.addEventListener("input", fit);

function stop() {
  running?.abort();
  question.focus();
}

at("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stop();
});

at("new").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  draw();
  keep();
  question.focus();
});

at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value);
  at("key").value = "";
  at("unlock").hidden = true;
  question.focus();
});

function mark() {
  document.body.classList.toggle("unmarked", !at("marks").checked);
}

at("marks").addEventListener("change", mark);
addEventListener("pagehide", () => {
  if (running) turns.at(-1).note = "Interrupted: the page was left.";
  keep();
});

// ---- the daemon, there or not

let away = false;

function heard(news) {
  const trouble = at("trouble");
  const refused = news instanceof Refused;
  if (refused && news.status === 401) {
    at("unlock").hidden = false;
    return;
  }
  const missing = refused || !["ready", "unloaded"].includes(news.state); // unloaded: the next message loads
  const text = refused ? `${news.message} This page goes on by itself when it is back.`
    : `The daemon is ${news.state}: ${news.detail || "one moment"}`;
  if (missing) {
    trouble.className = "";
    if (trouble.textContent !== text) trouble.textContent = text;
  } else if (away) {
    trouble.className = "well";
    trouble.textContent = "The daemon is back.";
    setTimeout(() => {
      if (!away) trouble.textContent = "";
    }, 4000);
  }
  away = missing;
}

const chosen = JSON.parse(sessionStorage.getItem("options") ?? "null");
OPTIONS.forEach((id, index) => {
  if (chosen) at(id)[at(id).type === "checkbox" ? "checked" : "value"] = chosen[index];
});
question.value = sessionStorage.getItem("typed") ?? "";
mark();
fit();
draw();
watch(heard);
