"""Where each millisecond of a round goes: `python bench/hot_loop.py --json OUT.json [--pair smollm2]`.

Our own code first: the real engine over a target and a draft that only hand out prepared logits of a wide
vocabulary; each part's time is the processor's, without the parts that it calls. To the engine and its
controller their passes take what they took on another machine (PLACE), so that `auto` drafts as it would
there. Then, with --pair, the rounds of a real daemon: draft, target, engine, and what queues, sockets and
client add.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import documents
import numpy as np
import torch
from fair import order
from places import PLACES
from prepared import Prepared, PreparedDraft
from replay import Clock, told_by
from suffix import make_text
from tables import table

from draftd.daemon import drafting as drafting_module
from draftd.daemon import engine as engine_module
from draftd.daemon.bench_files import write
from draftd.daemon.control import Control, Mode
from draftd.daemon.controller import Controller
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.plan import Plan
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.request import Request, Verify
from draftd.daemon.scheduler import Scheduler
from draftd.daemon.timed import Answer, ask
from draftd.drafts.suffix import SuffixDraft
from draftd.ipc import Client
from draftd.models import sampling as sampling_module
from draftd.models.noise import Noise
from draftd.models.sampling import Sampling

PROMPT = 400  # tokens of the text that stand there already
TURNS = 3  # answers of a real daemon by policy, behind one that warms it up
SCALE = 2.0  # the spread of all logits but the wanted token's
EXCLUDED = ("target", "draft")  # prepared logits: what they take is no part of ours
# A target of this vocabulary and a draft that pays, by published figures; they are told with the result.
PLACE = next(place for place in PLACES if place.name == "14B bf16 on an A100")
MODES: dict[str, tuple[Mode, Sampling, Verify]] = {
    "off, greedy": ("off", Sampling(), "coupled"),
    "off, 0.8": ("off", Sampling(0.8, seed=1), "coupled"),
    "model:8, greedy": (("model", 8), Sampling(), "coupled"),
    "model:8, 0.8": (("model", 8), Sampling(0.8, seed=1), "coupled"),
    "model:8, 0.8, top-p 0.95": (("model", 8), Sampling(0.8, top_p=0.95, seed=1), "coupled"),
    "model:8, 0.8, rejection": (("model", 8), Sampling(0.8, seed=1), "rejection"),
    "model:8, 0.8, top-p 0.95, rejection": (("model", 8), Sampling(0.8, top_p=0.95, seed=1), "rejection"),
    "suffix:8, greedy": (("suffix", 8), Sampling(), "coupled"),
    "auto, greedy": ("auto", Sampling(), "coupled"),
    "auto, 0.8": ("auto", Sampling(0.8, seed=1), "coupled"),
}


class Stopwatch:
    """Seconds of the processor by part, each without those parts that it calls."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0  # of the part that runs: what its own parts took

    def wrap(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            began = time.thread_time()
            try:
                return work(*given, **named)
            finally:
                took = time.thread_time() - began
                self.seconds[part] += took - self._inner
                self._inner = outer + took

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vocabulary", type=documents.count, default=151_936, help="tokens; Qwen's by default"
    )
    parser.add_argument("--tokens", type=documents.count, default=256, help="of each answer")
    parser.add_argument("--repeat", type=documents.count, default=5)
    parser.add_argument("--pair", help="also the rounds of a real daemon")
    parser.add_argument("--json", type=documents.new_file)
    options = parser.parse_args()
    if options.tokens < 2:
        parser.error("--tokens: timed is what follows the first, so at least 2")
    document = documents.begin(
        "hot loop",
        vocabulary=options.vocabulary,
        place=asdict(PLACE),
        own=own_code(options.vocabulary, options.tokens, options.repeat),
        copied_logits=copied_logits(options.vocabulary),
        daemon=real_rounds(options.pair) if options.pair else None,
    )
    print(*lines(document), sep="\n")
    write(options.json, document)


def own_code(vocabulary: int, tokens: int, repeat: int) -> dict[str, dict[str, float]]:
    """Processor seconds of a round by mode and part, medians over answers; `tokens` is what a round gave."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MODES}
    for _ in range(repeat):
        for name, mode in MODES.items():
            found[name].append(answer(vocabulary, tokens, *mode))
    return {
        name: {part: statistics.median(each.get(part, 0.0) for each in answers) for part in answers[0]}
        for name, answers in found.items()
    }


def answer(
    vocabulary: int, tokens: int, mode: Mode, sampling: Sampling, verify: Verify = "coupled"
) -> dict[str, float]:
    """One answer's seconds of a round by part; the prompt's pass is left out."""
    random, controller = np.random.default_rng(0), Controller()
    rows = (SCALE * random.standard_normal((1 + controller.longest, vocabulary))).astype(np.float32)
    text = [token % vocabulary for token in make_text(1000 + PROMPT + tokens, 0)[1000:]] + [0] * 40
    watch, clock = Stopwatch(), Clock()
    drafting = Drafting(PreparedDraft(rows[:1].copy(), text, clock, PLACE), SuffixDraft(), controller)
    engine = Engine(Prepared(rows, text, clock, PLACE), drafting)
    request = Request(
        key=0,
        tokens=text[:PROMPT],
        prompt=PROMPT,
        end=PROMPT + tokens,
        sampling=sampling,
        stop_ids=frozenset(),
        mode=mode,
        verify=verify,
        reuse=False,
    )
    engine.add(request)
    rounds = 0
    with told_by(clock):
        engine.step()
        before = len(request.tokens)
        with watched(watch, engine):
            step = watch.wrap("engine's own lines", engine.step)
            while engine.busy:
                step()
                rounds += 1
    found = {part: seconds / rounds for part, seconds in watch.seconds.items() if part not in EXCLUDED}
    return found | {"tokens": (len(request.tokens) - before) / rounds}


@contextmanager
def watched(watch: Stopwatch, engine: Engine) -> Iterator[None]:
    """The parts of a round under the stopwatch."""
    assert engine.drafting.model is not None
    parts: list[tuple[str, Any, str]] = [
        ("schedule", Scheduler, "schedule"),
        ("suffix look-up", SuffixDraft, "propose"),
        ("controller", Control, "plan"),
        ("controller", Control, "learn"),
        ("controller", Controller, "took"),
        ("controller", Plan, "proceed"),
        ("controller", Plan, "keep"),
        ("draft's choice", drafting_module, "tops_of"),
        ("draft's choice", drafting_module, "choose"),
        ("draft's choice", drafting_module, "confidence"),
        ("draft's choice", drafting_module, "law_of"),
        ("noise", sampling_module, "noise_of"),
        ("noise", Noise, "at"),
        ("verification", engine_module, "verify"),
        ("verification", engine_module, "verify_rejection"),
        ("target", engine.target, "forward"),
        ("draft", engine.drafting.model, "propose"),
    ]
    with ExitStack() as stack:
        for part, owner, name in parts:
            work = getattr(owner, name)
            stack.enter_context(patch.object(owner, name, watch.wrap(part, work)))
        yield


def copied_logits(vocabulary: int, rows: int = 9) -> float:
    """Seconds to hand the transformers target's logits over; llama.cpp's are looked at where they lie."""
    logits = torch.zeros(rows, vocabulary, dtype=torch.bfloat16)
    times = []
    for _ in range(30):
        began = time.perf_counter()
        logits.float().numpy()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def real_rounds(pair: str) -> dict[str, Any]:
    """A daemon's rounds, with and without drafting: seconds of a round by who takes them."""
    text = "Write a Python function that merges two sorted lists, and explain it."
    found: dict[str, list[dict[str, float]]] = {"off": [], "auto": []}
    with (
        private_daemon(pair, lambda status: None, variables=STEADY, cold=True) as endpoint,
        Client(endpoint, name="bench") as client,
    ):
        engine = client.status().engine
        for turn in range(1 + TURNS):
            for policy in order(list(found), 0, turn):
                asked = [{"role": "user", "content": text}]
                found[policy].append(a_round(ask(client, messages=asked, max_tokens=96, speculate=policy)))
    rounds = {
        policy: {part: statistics.median(each[part] for each in made[1:]) for part in made[0]}  # warm by then
        for policy, made in found.items()
    }
    return {"pair": pair, "backend": engine["backend"], "rounds": rounds}


def a_round(made: Answer) -> dict[str, float]:
    """An answer's seconds of a round by part, and the tokens that one gave."""
    stats = made.stats
    rounds = max(1, stats.rounds - 1)  # the prompt's own gave a token, too
    took = {"draft model": stats.draft_seconds, "target": stats.verify_seconds}
    took["engine"] = stats.overhead_seconds
    took["queues, sockets and client"] = made.seconds - sum(took.values()) - stats.prefill_seconds
    return {part: seconds / rounds for part, seconds in took.items()} | {"tokens": (made.made - 1) / rounds}


def lines(document: dict[str, Any]) -> list[str]:
    """The tables, in Markdown."""
    own = document["own"]
    parts = list(dict.fromkeys(part for found in own.values() for part in found if part != "tokens"))
    rows = [
        [part, *(f"{1e6 * found[part]:.0f}" if part in found else "-" for found in own.values())]
        for part in parts
    ]
    rows.append(["**sum**", *(f"**{1e6 * total(found):.0f}**" for found in own.values())])
    rows.append(["tokens a round", *(f"{found['tokens']:.2f}" for found in own.values())])
    made = [
        f"Our own code, processor microseconds of a round at a vocabulary of {document['vocabulary']:,}:",
        "",
        *table(["part", *own], rows),
        "",
        f"Beside these the transformers target's logits of nine rows are widened to 32 bits in "
        f"{1e6 * document['copied_logits']:.0f} µs; llama.cpp's are looked at where they lie.",
        *clocked(document),
    ]
    if daemon := document["daemon"]:
        rounds = daemon["rounds"]
        made += [
            "",
            f"A round of {daemon['pair']}, target in {daemon['backend']}, through a daemon, milliseconds:",
            "",
            *table(["part", *rounds], [in_daemon(part, rounds) for part in next(iter(rounds.values()))]),
        ]
    return made


def clocked(document: dict[str, Any]) -> list[str]:
    """By what times the controller chose; in documents without a place passes took no time."""
    place = document.get("place")
    if place is None:
        return []
    return [
        "",
        "SIMULATED is the controller's clock, which no figure of the table has in it: it chooses drafts as "
        f"in this place: {place['name']} ({place['source']}), a pass {place['pass_ms']:.1f} ms, each row "
        f"more {place['row_ms']:.2f} ms (reckoned), a drafted token {place['draft_ms']:.2f} ms "
        f"({place['drafting']}).",
    ]


def in_daemon(part: str, rounds: dict[str, dict[str, float]]) -> list[str]:
    """One part's cells of a real daemon's rounds."""
    if part == "tokens":
        return ["tokens a round", *(f"{found[part]:.2f}" for found in rounds.values())]
    return [part, *(f"{1000 * found[part]:.3f}" for found in rounds.values())]


def total(parts: dict[str, float]) -> float:
    """Seconds of a round, all parts of it."""
    return sum(seconds for part, seconds in parts.items() if part != "tokens")


if __name__ == "__main__":
    documents.run(main)
