"""What an answer feels like while it comes: first token, first sentence, the waits in between."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table

from draftd.daemon.bench_table import Measured
from draftd.daemon.timed import Answer

SHARES = (0.5, 0.95, 0.99)
KINDS = ("first token", "first sentence", "longest gap", "any gap")

Latency = dict[str, dict[str, float]]  # by kind: seconds by "p50", "p95", "p99"


def latencies(measured: Sequence[Measured]) -> dict[str, Latency]:
    """By policy, over all prompts and repetitions."""
    policies = measured[0].answers
    return {
        policy: latency([answer for each in measured for answer in each.answers[policy]])
        for policy in policies
    }


def latency(answers: Sequence[Answer]) -> Latency:
    """Percentiles of what a reader waits for; a kind that no answer has is left out."""
    values = {
        "first token": [answer.first_seconds for answer in answers],
        "first sentence": [answer.sentence_seconds for answer in answers],
        "longest gap": [max(answer.gaps) for answer in answers if answer.gaps],
        "any gap": [gap for answer in answers for gap in answer.gaps],
    }
    return {kind: percentiles(each) for kind, each in values.items() if each}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The shares of SHARES by name; none of no values."""
    return {f"p{share * 100:.0f}": percentile(values, share) for share in SHARES if values}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so many do not exceed."""
    return sorted(values)[math.ceil(len(values) * share) - 1]


def table(by_policy: dict[str, Latency]) -> Table:
    """A line a policy; of each kind p50, p95 and p99 in milliseconds."""
    made = Table(title="milliseconds, p50/p95/p99", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("policy", no_wrap=True)
    for kind in KINDS:
        made.add_column(kind, justify="right")
    for policy, found in by_policy.items():
        made.add_row(policy, *(cell(found.get(kind)) for kind in KINDS))
    return made


def cell(found: dict[str, float] | None) -> str:
    """Three percentiles in milliseconds."""
    return "-" if not found else "/".join(f"{seconds * 1000:.0f}" for seconds in found.values())
