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

import statistics
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import documents
import simulated
from places import Place
from recording import Answer, Opened
from replay import streams
from report_figures import BEHIND
from tables import table

from draftd.daemon.bench_files import write
from draftd.daemon.bench_table import geometric_mean, share_of_best
from draftd.daemon.control import Mode
from draftd.daemon.controller import Controller

FIXED: tuple[Mode, ...] = (
    ("model", 2),
    ("model", 4),
    ("model", 8),
    ("model", 16),
    ("suffix", 8),
    ("chain", 8),
)


def main() -> None:
    options = simulated.parser(__doc__).parse_args()
    with simulated.recorded(options) as (models, answers, opened):
        document = simulated.begin("simulated", options, models, answers, runs=[])
        for place in simulated.chosen(options):
            began = perf_counter()
            document["runs"] += at(place, answers, opened)
            took = perf_counter() - began
            print(f"[{took:.0f} s] SIMULATED {place.name}: {summary(document, place.name)}", flush=True)
            write(options.json, document)
    print(*lines(document), sep="\n")


def at(place: Place, answers: Sequence[Answer], opened: Opened) -> list[dict[str, Any]]:
    """Every policy in one place: its speed over that of the target alone, both through draftd."""
    policies: tuple[Mode, ...] = ("off", "auto", *FIXED)
    found = {simulated.policy(mode): simulate(place, mode, answers, opened) for mode in policies}
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
    controller = Controller(("suffix", "model"))
    return [streams(place, mode, [answer], opened, controller)[0].rest for answer in answers]


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
    policies = list(dict.fromkeys(run["policy"] for run in document["runs"]))
    heads = ["SIMULATED, speed over the target alone", *policies]
    heads += ["best fixed in hindsight", "auto / best fixed", "worst category", "our own ms a round"]
    rows = []
    for place in document["inputs"]:
        name = place["name"]
        speeds, share = means(document, name), shares(document, name)
        worst = min(share, key=lambda category: share[category][0])
        own = next(run["own_ms"] for run in document["runs"] if run["machine"] == name)
        cells = [name, *(f"{speed:.2f}x" for speed in speeds.values()), f"{hindsight(document, name):.2f}x"]
        cells.append(f"{geometric_mean(each for each, _ in share.values()):.2f}")
        cells += [f"{worst} {share[worst][0]:.2f} ({share[worst][1]})", f"{own:.2f}"]
        rows.append(cells)
    made = [
        *simulated.inputs(document),
        "",
        "Geometric means over the categories; in hindsight: the best of the fixed ones, or none, for each "
        "category.",
        "",
        *table(heads, rows),
        "",
        f"SIMULATED: where the controller is below {BEHIND} of the best fixed (which one):",
        "",
    ]
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
