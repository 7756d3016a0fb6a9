"""SIMULATED: several apps at once in places that this machine can't be, as bench/simulated_gpu.py has one.

    python bench/simulated_apps.py --prompts FILE.jsonl --recording FILE.npz --json OUT.json

Each app asks for a recorded answer, and all run together through the engine, its scheduler, its controller
and our own code; target and draft are replayed at the place's times, one pass for all. It takes what
bench/simulated_gpu.py recorded, and records what is missing. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from time import perf_counter
from typing import Any

import documents
import simulated
from fair import jain
from places import Place
from recording import Answer, Opened
from replay import Stream, streams

from draftd.daemon.bench_files import write
from draftd.daemon.bench_latency import percentile
from draftd.daemon.control import Mode
from draftd.daemon.controller import Controller
from draftd.daemon.learnt import Learnt

POLICIES: tuple[Mode, ...] = ("off", "auto", ("model", 4))
LATE = 8  # tokens that each of the others has when the late app asks
HEADS = (
    *("SIMULATED, apps", "policy", "tokens a second, all", "over `off`", "worst app over `off`"),
    *("Jain's index", "first token ms, p50/worst", "gap ms, p95/worst"),
    *("late app's first token ms", "the others' longest gap ms"),
)
Row = dict[str, Any]  # one policy with so many apps in one place


def main() -> None:
    parser = simulated.parser(__doc__)
    parser.add_argument("--apps", nargs="+", type=documents.count, default=[1, 2, 4, 8])
    options = parser.parse_args()
    with simulated.recorded(options, slots=max(options.apps)) as (models, answers, opened):
        longest = len(latest(answers).prompt)
        document = simulated.begin("simulated apps", options, models, answers, late_prompt=longest, rows=[])
        for place in simulated.chosen(options):
            began = perf_counter()
            document["rows"] += at(place, options.apps, answers, opened)
            took = perf_counter() - began
            print(f"[{took:.0f} s] SIMULATED {place.name}: {summary(document, place.name)}", flush=True)
            write(options.json, document)
    print(*lines(document), sep="\n")


def at(place: Place, counts: Sequence[int], answers: Sequence[Answer], opened: Opened) -> list[Row]:
    """Every policy with each number of apps in one place."""
    known = learnt(place, answers, opened)
    last = latest(answers)
    others = [each for each in answers if each is not last] or answers
    rows = []
    for count in counts:
        together = list(islice(cycle(answers), count))
        followed = [*islice(cycle(others), count - 1), last]
        for mode in POLICIES:
            found = streams(place, mode, together, opened, controller(known))
            row: Row = {"machine": place.name, "apps": count, "policy": simulated.policy(mode)}
            row |= at_once(found, [len(each.rows) for each in together])
            row["late"] = None
            if count > 1:
                row["late"] = one_late(streams(place, mode, followed, opened, controller(known), LATE))
            rows.append(row)
    return rows


def learnt(place: Place, answers: Sequence[Answer], opened: Opened) -> Learnt:
    """What a controller knows of a place when each answer has been asked for alone, one after the other."""
    made = controller()
    for answer in answers:
        streams(place, "auto", [answer], opened, made)
    return made.learnt


def controller(known: Learnt | None = None) -> Controller:
    return Controller(("suffix", "model"), learnt=known)


def latest(answers: Sequence[Answer]) -> Answer:
    """What the late app asks for: the longest prompt's answer."""
    return max(answers, key=lambda each: len(each.prompt))


def at_once(found: Sequence[Stream], lengths: Sequence[int]) -> Row:
    """What apps get that ask together for answers of so many tokens; seconds, and tokens a second."""
    speeds = [(length - 1) / each.rest for each, length in zip(found, lengths, strict=True)]
    gaps = [gap for each in found for gap in each.gaps()]
    return {
        "throughput": sum(lengths) / (max(each.came[-1] for each in found) - found[0].asked),
        "fairness": jain(speeds),
        "speeds": speeds,
        "first_seconds": [each.first for each in found],
        "gap_p95": percentile(gaps, 0.95),
        "gap_worst": max(gaps),
    }


def one_late(found: Sequence[Stream]) -> Row:
    """What the last app gets, and the others' longest gap from then on (None: all had ended), in seconds."""
    *others, last = found
    gaps = [gap for each in others for gap in each.gaps(last.asked)]
    return {"first_seconds": last.first, "longest_gap": max(gaps, default=None)}


def gain(document: dict[str, Any], row: Row) -> tuple[float, float]:
    """Over the target alone with as many apps: tokens a second of all, and of the app that gains least."""
    alone = next(
        each
        for each in document["rows"]
        if (each["machine"], each["apps"], each["policy"]) == (row["machine"], row["apps"], "off")
    )
    speeds = zip(row["speeds"], alone["speeds"], strict=True)
    return row["throughput"] / alone["throughput"], min(speed / plain for speed, plain in speeds)


def summary(document: dict[str, Any], place: str) -> str:
    return ", ".join(
        f"{row['policy']} of {row['apps']} {gain(document, row)[0]:.2f}x"
        for row in document["rows"]
        if row["machine"] == place and row["policy"] != "off"
    )


def lines(document: dict[str, Any]) -> list[str]:
    """The tables, in Markdown: the inputs, then a table a place, which nobody measured on such a machine."""
    categories = ", ".join(category for category, _ in document["answers"])
    made = [
        *simulated.inputs(document),
        "",
        "SIMULATED apps: so many ask at once in an engine with a slot for each. N apps ask for the first N "
        f"of the recorded answers ({categories}; then these again), so rows of different N are of different "
        "texts: rows of one N compare. Prompts are computed anew, and nobody is drafted for from another's "
        "text. Each app's tokens make a pass longer as a row more or a token more to read does; "
        "what its own keys and values add is left out. `auto` begins with what it learnt from the answers "
        "one at a time.",
        "",
        "Tokens a second: all tokens over the time from the asking to the last answer's end, prompts "
        "included. An app's own speed, of which are Jain's index and the worst app, counts from its first "
        "token on. A gap is from one emission of an answer to its next. The last two columns are another run "
        f"of as many apps: when each of the others has {LATE} tokens, or its end, the last asks with the "
        f"longest prompt ({document['late_prompt']} tokens), between two rounds; the others' gap is their "
        "longest from then on.",
    ]
    for place in document["inputs"]:
        made += [
            "",
            f"SIMULATED, {place['name']}: a pass {place['pass_ms']:.1f} ms, each row more "
            f"{place['row_ms']:.2f} ms; a drafted token {place['draft_ms']:.2f} ms, each token more that is "
            f"read, or drafted for another app at once, {place['read_ms']:.2f} ms.",
            "",
            f"| {' | '.join(HEADS)} |",
            "|---" * len(HEADS) + "|",
        ]
        rows = [row for row in document["rows"] if row["machine"] == place["name"]]
        made += [f"| {' | '.join(cells(row, *gain(document, row)))} |" for row in rows]
    return made


def cells(row: Row, together: float, worst: float) -> list[str]:
    """One line of a place's table; `together` and `worst` are what `gain` gives."""
    first, late = row["first_seconds"], row["late"] or {"first_seconds": None, "longest_gap": None}
    return [
        f"{row['apps']}",
        row["policy"],
        f"{row['throughput']:.1f}",
        f"{together:.2f}x",
        f"{worst:.2f}x",
        f"{row['fairness']:.3f}",
        f"{_ms(percentile(first, 0.5))}/{_ms(max(first))}",
        f"{_ms(row['gap_p95'])}/{_ms(row['gap_worst'])}",
        _ms(late["first_seconds"]),
        _ms(late["longest_gap"]),
    ]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


if __name__ == "__main__":
    documents.run(main)
