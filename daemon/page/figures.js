// The live figures, from the daemon's status once a second while the page is in view.

import { status, Refused } from "./stream.js";

const EVERY = 1000; // milliseconds
const MINUTE = 60; // looks that the line of speeds shows
const SOURCES = { suffix: "Earlier text", model: "Draft model" };

const at = (id) => document.getElementById(id);
const fixed = (value, digits = 1) => value.toFixed(digits);
const size = (bytes) => (bytes >= 1e9 ? `${fixed(bytes / 1e9, 2)} GB` : `${fixed(bytes / 1e6, 0)} MB`);
const sum = (values) => values.reduce((total, value) => total + value, 0);
const say = (id, text) => {
  if (at(id).textContent !== text) at(id).textContent = text;
};

let own = null; // this chat's speed: {rate, drafting, live}
let alone = null; // tokens a second of the target alone, once the daemon has measured it
let last = null; // [milliseconds, tokens so far]
const speeds = [];

/** Watch the daemon for ever; `heard` is told each status, or the Refused that came instead. */
export async function watch(heard) {
  for (;;) {
    if (!document.hidden) {
      try {
        const now = await status();
        show(now);
        heard(now);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        lost();
        heard(error);
      }
    }
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

/** This chat's answer goes, or went, at `rate` tokens a second, with drafts or without. */
export function speed(rate, drafting, live) {
  own = { rate, drafting, live };
  compare();
}

function show(now) {
  // A pass over one token is how the target would answer alone. The daemon measures it now and then.
  const pass = now.learnt.target_ms?.["1"];
  alone = pass ? 1000 / pass : null;
  say("alone-why", alone
    ? `A pass of the target over one token takes ${fixed(pass, pass < 10 ? 1 : 0)} ms here, by the daemon's own measurements.`
    : "The daemon has not measured the target alone yet. To have it measured now, untick Draft for one answer.");
  compare();
  accepted(now.counters);
  say("pair", now.pair);
  say("state", now.state === "ready" ? "ready" : now.detail || now.state);
  say("running", `${now.requests.running ?? 0} of ${now.limits.slots ?? 0}`);
  say("waiting", `${now.requests.waiting ?? 0} of ${now.limits.queue ?? 0} waiting`);
  say("memory", size(sum(Object.values(now.memory))));
  const heat = now.governor.temperature;
  say("temperature-now", heat == null ? "no sensor" : `${fixed(heat, 0)} °C`);
  at("governor").hidden = !now.governor.rung;
  say("governor", now.governor.rung ? `Stepping back: ${now.governor.does}, since ${now.governor.why}` : "");
  history(now);
}

function lost() {
  last = null;
  say("state", "away");
  for (const id of ["running", "waiting", "memory", "temperature-now", "speed-all"]) say(id, "–");
}

function compare() {
  const most = Math.max(own?.rate ?? 0, alone ?? 0);
  at("bar-now").firstChild.style.width = own ? `${(100 * own.rate) / most}%` : "0";
  at("bar-alone").firstChild.style.width = alone ? `${(100 * alone) / most}%` : "0";
  say("speed-name", own?.live ? "This answer" : "Latest answer");
  say("speed-now", own ? `${fixed(own.rate)} tokens/s` : "none yet");
  say("speed-alone", alone ? `${fixed(alone)} tokens/s` : "not known yet");
  const known = own?.drafting && alone;
  say("gain", known ? `${fixed(own.rate / alone)}×` : "–");
  say("gain-words", own && !own.drafting ? "without drafting" : "the target alone");
}

/** A row for each source that has drafted: how much of it the target agreed with. */
function accepted({ drafted = {}, accepted: agreed = {} }) {
  const rows = Object.keys(drafted).sort().flatMap((source) => {
    const tried = sum(drafted[source]);
    const share = tried ? sum(agreed[source]) / tried : 0;
    return tried ? [[SOURCES[source] ?? source, share, tried]] : [];
  });
  say("sources-why", rows.length ? "Of all requests since the daemon's start." : "Nothing drafted since the daemon's start.");
  at("sources").replaceChildren(...rows.flatMap(([name, share, tried]) => {
    const row = document.createElement("div");
    const [term, value, bar] = ["dt", "dd", "div"].map((tag) => document.createElement(tag));
    term.textContent = name;
    value.textContent = `${fixed(100 * share, 0)} % of ${tried.toLocaleString("en")}`;
    row.append(term, value);
    bar.className = "bar";
    bar.setAttribute("aria-hidden", "true");
    bar.append(document.createElement("i"));
    bar.firstChild.style.width = `${100 * share}%`;
    return [row, bar];
  }));
}

/** All apps' tokens a second between two looks, and the line of the last minute. */
function history(now) {
  const total = (now.counters.tokens?.completion ?? 0) + sum(now.active.map((each) => each.tokens));
  const time = performance.now();
  // An abandoned request takes its tokens out of the sum: no speed is below nothing.
  const rate = last ? Math.max(0, (1000 * (total - last[1])) / (time - last[0])) : 0;
  last = [time, total];
  speeds.push(rate);
  if (speeds.length > MINUTE) speeds.shift();
  say("speed-all", `${fixed(rate)} tokens/s`);
  const most = Math.max(...speeds, 1);
  const start = MINUTE - speeds.length;
  const points = speeds.map((value, index) => `${start + index},${fixed(19 - (18 * value) / most, 2)}`);
  at("history").querySelector("polyline").setAttribute("points", points.join(" "));
  at("history").querySelector("polygon").setAttribute("points", `${start},20 ${points.join(" ")} ${MINUTE - 1},20`);
}
