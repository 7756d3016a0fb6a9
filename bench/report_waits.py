"""What a reader waits for, of draftd and of its peers: first token, first sentence, longest gap."""

from __future__ import annotations

from typing import Any

from report_figures import answers
from tables import table

from draftd.daemon.bench_latency import cell, percentiles


def waits(document: dict[str, Any]) -> list[str]:
    """A table of what a reader waits for, over all answers; of older files, which don't tell, nothing."""
    found = {
        name: [each for turns in answers(document, name).values() for each in turns]
        for name in document["memory_bytes"]
    }
    rows = []
    for name, given in found.items():
        if not all("gaps" in each for each in given):
            continue
        kinds = {
            "first token": [each["first_seconds"] for each in given],
            "first sentence": [each["sentence_seconds"] for each in given],
            "longest gap": [max(each["gaps"]) for each in given if each["gaps"]],
        }
        rows.append([name, *(cell(percentiles(values)) for values in kinds.values())])
    if not rows:
        return []
    heads = ["contender", "first token", "first sentence", "longest gap"]
    told = "\nMilliseconds that a reader waits, p50/p95/p99; a gap is between two pieces:\n"
    return [told, *table(heads, rows)]
