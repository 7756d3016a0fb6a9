"""A SIMULATED target: the real target's recorded logits, replayed at a chosen time a pass.

    python bench/simulated_gpu.py --prompts FILE.jsonl --recording FILE.npz --json OUT.json

For pairs that this machine can't hold (bench/places.py). The logits and the draft's tokens are real; the
times of target and draft are inputs, printed with the result. The engine, the controller and our own code run
as they are, at the processor's time that they take: their clock is moved by the difference. Nothing here was
measured on a GPU.

Recording takes minutes and is kept (--recording): what is replayed then takes our own code's time only, and
other programs on the machine count little. --places N ... takes some of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import documents
import recording
from places import PLACES, Place
from recording import Answer, Opened
from replay import Clock, Replay, ReplayedDraft, told_by

from draftd.daemon import loader
from draftd.daemon.bench_files import read_prompts
from draftd.daemon.bench_table import geometric_mean, share_of_best
from draftd.daemon.control import Mode
from draftd.daemon.controller import Controller
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request
from draftd.daemon.settings import load as load_settings
from draftd.drafts.base import Draft
from draftd.drafts.suffix import SuffixDraft
from draftd.models.sampling import Sampling

FIXED: tuple[Mode, ...] = (
    ("model", 2),
    ("model", 4),
    ("model", 8),
    ("model", 16),
    ("suffix", 8),
    ("chain", 8),
)
BEHIND = 0.95  # a share of the best fixed policy that the page names one by one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--per-category", type=documents.count, default=1)
    parser.add_argument("--max-tokens", type=documents.count, default=96)
    parser.add_argument("--places", type=int, nargs="+", choices=range(1, len(PLACES) + 1), metavar="N")
    parser.add_argument(
        "--recording", type=documents.new_file, help="kept there, and taken from there the next time"
    )
    parser.add_argument("--json", type=documents.new_file, required=True)
    options = parser.parse_args()
    asked = f"{options.prompts.name}, {options.per_category} x {options.max_tokens} tokens"
    title = f"{options.pair}, {asked}, confidences by group"
    if options.recording and options.recording.exists():
        models, answers = recording.load(options.recording, title)
    else:
        models, answers = record(options)
        if options.recording:
            recording.save(options.recording, title, models, answers)
    replayed = [answer for answer in answers if len(answer.rows) > 1]  # timed is what follows the first token
    if not replayed:
        raise SystemExit("no answer has a second token, where the timing begins: raise --max-tokens")
    known = sum(len(answer.drafted) for answer in answers)
    opened = functools.cache(lambda: open_draft(options.pair, models))
    places = [PLACES[number - 1] for number in options.places or range(1, len(PLACES) + 1)]
    document = documents.begin(
        "simulated",
        pair=options.pair,
        models=models,
        inputs=[asdict(place) for place in places],
        answers=[[each.category, len(each.rows)] for each in replayed],
        runs=[],
    )
    try:
        for place in places:
            began = perf_counter()
            document["runs"] += at(place, replayed, opened)
            took = perf_counter() - began
            print(f"[{took:.0f} s] SIMULATED {place.name}: {summary(document, place.name)}", flush=True)
            options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    finally:
        if options.recording and sum(len(answer.drafted) for answer in answers) > known:
            recording.save(options.recording, title, models, answers)
    print(*lines(document), sep="\n")


def load(pair: str) -> loader.Loaded:
    own = {"pair": pair, "slots": 1, "context": 4096, "backend": "llama_cpp", "history": False}
    with tempfile.TemporaryDirectory() as state:
        settings = load_settings(None).model_copy(update=own | {"state_dir": Path(state)})
        return loader.load(settings, lambda fraction, stage: None)


def open_draft(pair: str, models: str) -> Draft:
    """The pair's draft, if it is the one that the recording is of."""
    loaded = load(pair)
    loaded.target.close()
    if loaded.drafting.model is None:
        raise SystemExit(f"the pair {pair} has no draft here: {loaded.info.get('draft_refused')}")
    if (here := named(loaded)) != models:
        raise SystemExit(f"the recording is of {models}; here it would be {here}: name another file")
    return loaded.drafting.model


def named(loaded: loader.Loaded) -> str:
    return f"target {loaded.info['target']}, draft {loaded.info['draft']}"


def record(options: argparse.Namespace) -> tuple[str, list[Answer]]:
    """What the pair's models are, and each prompt's answer by its own target."""
    loaded = load(options.pair)
    answers = []
    for prompt in read_prompts(options.prompts, options.per_category):
        tokens = loaded.tokenizer.chat([{"role": "user", "content": prompt.turns[0]}])
        given = (loaded.target, prompt.category, tokens, options.max_tokens, loaded.tokenizer.stop_ids)
        began = perf_counter()
        answers.append(recording.record(*given))
        print(
            f"[{perf_counter() - began:.0f} s] recorded {prompt.category}: {len(tokens)} tokens of prompt, "
            f"{len(answers[-1].rows)} of answer",
            flush=True,
        )
    loaded.target.close()
    if loaded.drafting.model is not None:
        loaded.drafting.model.close()
    return named(loaded), answers


def at(place: Place, answers: Sequence[Answer], opened: Opened) -> list[dict[str, Any]]:
    """Every policy in one place: its speed over that of the target alone, both through draftd."""
    policies: tuple[Mode, ...] = ("off", "auto", *FIXED)
    found = {}
    for mode in policies:
        name = mode if isinstance(mode, str) else f"{mode[0]}:{mode[1]}"
        found[name] = simulate(place, mode, answers, opened)
    alone = found.pop("off")
    passes = [(len(each.rows) - 1) * place.pass_ms / 1000 for each in answers]
    ours = statistics.median(
        (each - bare) / (len(answer.rows) - 1)
        for each, bare, answer in zip(alone, passes, answers, strict=True)
    )
    return [
        {
            "machine": place.name,
            "policy": name,
            "own_ms": 1000 * ours,  # of our own code, a round of the target alone
            "by_category": {
                category: total(answers, alone, category) / total(answers, seconds, category)
                for category in dict.fromkeys(answer.category for answer in answers)
            },
        }
        for name, seconds in found.items()
    ]


def total(answers: Sequence[Answer], seconds: Sequence[float], category: str) -> float:
    """Of a category's answers."""
    return sum(each for answer, each in zip(answers, seconds, strict=True) if answer.category == category)


def simulate(place: Place, mode: Mode, answers: Sequence[Answer], opened: Opened) -> list[float]:
    """Seconds behind the first token of each answer, one after the other with one controller."""
    clock, controller = Clock(), Controller(("suffix", "model"))
    found = []
    with told_by(clock):
        for key, answer in enumerate(answers):
            drafting = Drafting(ReplayedDraft(answer, opened, clock, place), SuffixDraft(), controller)
            engine = Engine(Replay(answer, clock, place), drafting)
            prompt, expected = len(answer.prompt), answer.tokens
            request = Request(
                key, list(answer.prompt), prompt, prompt + len(expected), Sampling(), frozenset(), mode=mode
            )
            request.reuse = False
            engine.add(request)
            while len(request.tokens) == prompt:  # the prompt's passes, up to the first token
                engine.step()
            began = clock.perf_counter()
            while engine.busy:
                engine.step()
            found.append(clock.perf_counter() - began)
            if request.tokens[prompt:] != expected:
                raise SystemExit(f"the replayed answer of {answer.category} differs from the recorded one")
    return found


def shares(document: dict[str, Any], place: str) -> dict[str, tuple[float, str]]:
    """By category: the controller's share of the best fixed policy's speed, and which one that is."""
    runs = {run["policy"]: run["by_category"] for run in document["runs"] if run["machine"] == place}
    fixed = [policy for policy in runs if policy != "auto"]
    found = {}
    for category in runs["auto"]:
        speeds = {policy: each[category] for policy, each in runs.items()}
        best = max(fixed, key=lambda policy: speeds[policy])
        found[category] = (share_of_best(speeds, fixed), best if speeds[best] > 1.0 else "off")
    return found


def means(document: dict[str, Any], place: str) -> dict[str, float]:
    """By policy: speed over the target alone, as geometric mean over the categories."""
    return {
        run["policy"]: geometric_mean(run["by_category"].values())
        for run in document["runs"]
        if run["machine"] == place
    }


def hindsight(document: dict[str, Any], place: str) -> float:
    """The same of each category's best fixed policy, the target alone being one."""
    runs = [
        run["by_category"] for run in document["runs"] if run["machine"] == place and run["policy"] != "auto"
    ]
    return geometric_mean(max(1.0, *(run[category] for run in runs)) for category in runs[0])


def summary(document: dict[str, Any], place: str) -> str:
    share = geometric_mean(each for each, _ in shares(document, place).values())
    return (
        f"auto {means(document, place)['auto']:.2f}x, best fixed {hindsight(document, place):.2f}x, "
        f"auto / best fixed {share:.2f}"
    )


def lines(document: dict[str, Any]) -> list[str]:
    """The tables, in Markdown: the inputs, then speeds that nobody measured on such a machine."""
    count = sum(length for _, length in document["answers"])
    made = [
        f"**SIMULATED.** The logits of {document['pair']}'s target ({len(document['answers'])} answers, "
        f"{count} tokens; {document['models']}) and the choices of its draft are real and were recorded; "
        "the times of a pass and of a drafted token are inputs. No such machine was at hand, and acceptance "
        "is that of the small pair. Our own code takes the processor's time that it takes on this machine.",
        "",
        "| simulated place | a pass is of | pass ms | row ms | drafted token ms | read ms | draft's are of |",
        "|---|---|---|---|---|---|---|",
    ]
    for place in document["inputs"]:
        cells = [place["name"], f"{place['basis']}: {place['source']}", f"{place['pass_ms']:.1f}"]
        cells += [f"{place[name]:.2f}" for name in ("row_ms", "draft_ms", "read_ms")]
        made.append(f"| {' | '.join([*cells, place['drafting']])} |")
    policies = list(dict.fromkeys(run["policy"] for run in document["runs"]))
    heads = ["SIMULATED, speed over the target alone", *policies]
    heads += ["best fixed in hindsight", "auto / best fixed", "worst category", "our own ms a round"]
    made += [
        "",
        "Row ms: each row that a pass checks beyond the first; read ms: each token more that the draft reads "
        "at once. Geometric means over the categories; in hindsight: the best of the fixed ones, or none, "
        "for each category.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for place in document["inputs"]:
        name = place["name"]
        speeds, share = means(document, name), shares(document, name)
        worst = min(share, key=lambda category: share[category][0])
        own = next(run["own_ms"] for run in document["runs"] if run["machine"] == name)
        cells = [name, *(f"{speed:.2f}x" for speed in speeds.values()), f"{hindsight(document, name):.2f}x"]
        cells.append(f"{geometric_mean(each for each, _ in share.values()):.2f}")
        cells += [f"{worst} {share[worst][0]:.2f} ({share[worst][1]})", f"{own:.2f}"]
        made.append(f"| {' | '.join(cells)} |")
    made += ["", f"SIMULATED: where the controller is below {BEHIND} of the best fixed (which one):", ""]
    for place in document["inputs"]:
        found = [
            f"{category} {share:.2f} ({best})"
            for category, (share, best) in shares(document, place["name"]).items()
            if share < BEHIND
        ]
        made.append(f"- {place['name']}: {', '.join(found) or 'nowhere'}")
    return made


if __name__ == "__main__":
    documents.run(main)
