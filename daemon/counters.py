"""What the front counts from its start on, in plain numbers; daemon/metrics.py gives them to Prometheus.

Counting costs the front a few additions a finished request. It exports nothing itself: a scrape is another
process's work, so that no token waits for one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # seconds
POSITIONS = 16  # drafted tokens of a round told apart; what lies behind counts as POSITIONS + 1
PHASES = ("queue", "prefill", "draft", "verify", "overhead")  # where a request's time goes


@dataclass(slots=True)
class Histogram:
    """Seconds by bucket; a bucket holds what is at most its bound, the last one what is more."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0  # seconds

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def snapshot(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "total": self.total}


@dataclass(slots=True)
class Counters:
    """Since the front's start."""

    outcomes: Counter[str] = field(default_factory=Counter)  # by finish_reason or error code
    tokens: Counter[str] = field(default_factory=Counter)  # prompt, cached, completion
    rounds: Counter[str] = field(default_factory=Counter)  # by who drafted
    drafted: dict[str, list[int]] = field(default_factory=dict)  # by source, then position
    accepted: dict[str, list[int]] = field(default_factory=dict)
    phases: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in PHASES})
    first_token: Histogram = field(default_factory=Histogram)
    request: Histogram = field(default_factory=Histogram)
    restarts: Counter[str] = field(default_factory=Counter)  # engines replaced: crash or hang
    reloads: Counter[str] = field(default_factory=Counter)  # of the configuration: applied or refused

    def failed(self, code: str) -> None:
        """A request ended with an error, or was refused."""
        self.outcomes[code] += 1

    def done(self, reason: str, usage: dict[str, int], stats: dict[str, Any], told: dict[str, Any]) -> None:
        """A request ended; `told` is what the engine says for the books alone (daemon/worker.py)."""
        self.outcomes[reason] += 1
        self.tokens["prompt"] += usage["prompt_tokens"]
        self.tokens["cached"] += usage["cached_tokens"]
        self.tokens["completion"] += usage["completion_tokens"]
        self.request.add(told["seconds"])
        self.answer(usage["completion_tokens"], stats, told)

    def answer(self, tokens: int, stats: dict[str, Any], told: dict[str, Any]) -> None:
        """What one of a request's answers took."""
        self.rounds.update(stats["sources"])
        for phase in PHASES[1:]:
            self.phases[phase].add(stats[f"{phase}_seconds"])
        self.phases["queue"].add(told["queue_seconds"])
        if tokens:
            self.first_token.add(stats["time_to_first_token"])
        for source, (drafted, accepted) in told["positions"].items():
            _add(self.drafted.setdefault(source, []), drafted)
            _add(self.accepted.setdefault(source, []), accepted)

    def snapshot(self) -> dict[str, Any]:
        """The `counters` of a full status (ipc/PROTOCOL.md)."""
        return {
            **{
                name: dict(getattr(self, name))
                for name in ("outcomes", "tokens", "rounds", "restarts", "reloads")
            },
            "drafted": {source: list(counts) for source, counts in self.drafted.items()},
            "accepted": {source: list(counts) for source, counts in self.accepted.items()},
            "bounds": list(BOUNDS),
            "phases": {name: histogram.snapshot() for name, histogram in self.phases.items()},
            "first_token": self.first_token.snapshot(),
            "request": self.request.snapshot(),
        }


def _add(counts: list[int], more: list[int]) -> None:
    """Add by position; all positions past the last one told apart go together."""
    for index, count in enumerate(more):
        at = min(index, POSITIONS)
        counts.extend([0] * (at + 1 - len(counts)))
        counts[at] += count
