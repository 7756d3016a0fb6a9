"""The report's sections of quality, roofline, scaling, the hot loop, prefill, memory and the guard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import check
import hot_loop
import memory
import prefill
import roofline
import scaling_tables
import simulated_apps
import simulated_gpu
import suffix
import verify_modes
from documents import without_folders
from tables import table

from draftd.daemon import bench_latency, bench_scores

Document = dict[str, Any]


def section(document: Document) -> str:
    """One document as its kind is shown."""
    title, body = KINDS[document["kind"]]
    if parts := told_apart(document):
        title += f", {parts}"
    named = [document["pair"]] if "pair" in document else []
    backend = [f"target in {document['backend']}"] if "backend" in document else []
    command = without_folders(document["command"]).replace("\n", "\n    ")
    heading = ": ".join([title, ", ".join([*named, *backend])]) if named else title
    return "\n".join([f"### {heading}", "", f"    {command}", "", *body(document)]).replace("\n\n\n", "\n\n")


def told_apart(document: Document) -> str:
    """What a heading says where one kind has several sections of a pair: the type, or what was scaled."""
    if document["kind"] == "quality":
        return str(document.get("dtype") or "")  # a running daemon in llama.cpp tells none
    parts = [part for part in scaling_tables.PARTS if document["kind"] == "scaling" and document.get(part)]
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def quality(document: Document) -> list[str]:
    """Scores by contender, and where speculation left the target's own answers."""
    items = ", ".join(f"{count} of {task}" for task, count in document["items"].items())
    heads = ["contender", *bench_scores.SCORES, "same as the first", "same as its target alone"]
    rows = [bench_scores.Row(**row) for row in document["rows"]]
    return [
        f"Questions of our own with references ({items}), greedy, {document['max_tokens']} tokens at most. "
        "BLEU and chrF of the translations, ROUGE of the summaries, the other two of the short "
        "answers; 0 to 100. Of a target that is a GGUF file transformers runs the same quantised weights, "
        "converted to 16 or 32 bits: what that quantisation cost is not in the table.",
        "",
        *table(heads, map(bench_scores.cells, rows)),
        "",
        *bench_scores.divergences(rows),
    ]


def joined(documents: Sequence[Document]) -> list[Document]:
    """The documents; runs of `--quality` that asked the same questions of some forms each become one.

    A run of another machine or commit stays apart: a section says where it was made, and by what.
    """
    made: list[Document] = []
    runs: dict[str, Document] = {}
    for each in documents:
        if each.get("kind") != "quality":
            made.append(each)
            continue
        asked = str([each[name] for name in ("machine", "pair", "dtype", "items", "max_tokens")])
        if asked not in runs:
            made.append(runs.setdefault(asked, dict(each)))
            continue
        run = runs[asked]
        answers = next(iter(run["said"].values()))
        here = {row["name"] for row in run["rows"]}
        same = {
            name: sum(said[key] == answers[key] for key in answers) for name, said in each["said"].items()
        }
        more = [row | {"same_as_first": same[row["name"]]} for row in each["rows"] if row["name"] not in here]
        run |= {"command": f"{run['command']}\n{each['command']}", "rows": [*run["rows"], *more]}
    return made


def latency(found: dict[str, bench_latency.Latency]) -> list[str]:
    """What an answer feels like while it comes, by policy."""
    heads = ["policy", *bench_latency.KINDS]
    rows = [
        [policy, *(bench_latency.cell(each.get(kind)) for kind in bench_latency.KINDS)]
        for policy, each in found.items()
    ]
    return ["", "Milliseconds that a reader waits, p50/p95/p99:", "", *table(heads, rows), ""]


KINDS: dict[str, tuple[str, Callable[[Document], list[str]]]] = {  # in the page's order
    "memory": ("Memory of each form alone", memory.lines),
    "simulated": ("SIMULATED, pairs that this machine can't hold", simulated_gpu.lines),
    "simulated apps": ("SIMULATED, several apps in such places", simulated_apps.lines),
    "prefill": ("The first token after a prefill", prefill.lines),
    "roofline": ("What the machine allows", roofline.lines),
    "scaling": ("Scaling", scaling_tables.tables),
    "hot loop": ("Where a round's time goes", hot_loop.lines),
    "suffix": ("What the suffix draft costs", suffix.lines),
    "quality": ("Quality", quality),
    "verify modes": ("Coupled against rejection", verify_modes.lines),
    "check": (
        "The guard against getting slower",
        lambda document: check.lines(document["ratios"], document["floors"]),
    ),
}
