"""Machines: the milliseconds of a pass by its rows, from measurements on two cores."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from tests.daemon.simulator.text import OFFER


@dataclass(frozen=True)
class Machine:
    """What passes of the target and of the draft take, in seconds."""

    target: dict[int, float]
    draft: dict[int, float]

    def tables(self, rows: int = 2 * OFFER, prompt: int = 1024) -> tuple[list[float], list[float]]:
        return _by_rows(self.target, rows), _by_rows(self.draft, prompt)


def _by_rows(points: dict[int, float], most: int) -> list[float]:
    widths = sorted(points)
    table = [0.0]
    for width in range(1, most + 1):
        left = min(max(bisect_right(widths, width) - 1, 0), len(widths) - 2)
        low, high = widths[left], widths[left + 1]
        slope = (points[high] - points[low]) / (high - low)
        table.append((points[low] + slope * (width - low)) / 1000)
    return table


TUNED = {1: 15.5, 5: 34.0, 8: 40.0, 16: 59.0, 32: 119.0}
SHIPPED = {1: 40.0, 5: 76.0, 8: 91.0, 16: 134.0, 32: 269.0}
SMALL = {1: 9.0, 5: 20.0, 8: 29.0, 16: 47.0, 32: 125.0}
FLAT = {1: 286.0, 5: 290.0, 8: 291.0, 16: 292.0, 20: 388.0, 32: 388.0, 48: 480.0}
STEEP = {1: 80.0, 5: 128.0, 8: 156.0, 16: 223.0, 32: 313.0}
STEPPED = {1: 95.0, 2: 138.0, 3: 152.0, 4: 152.0, 5: 190.0, 8: 270.0, 16: 335.0, 32: 578.0}
HEAVY = {1: 31.0, 5: 60.0, 57: 400.0}
TINY = {1: 38.0, 5: 40.0, 8: 41.0, 16: 48.0, 32: 51.0}
MACHINES = {
    "transformers, tuned draft": Machine(FLAT, TUNED),
    "transformers, shipped draft": Machine(FLAT, SHIPPED),
    "llama.cpp, tuned draft": Machine(STEEP, TUNED),
    "llama.cpp, shipped draft": Machine(STEEP, SHIPPED),
    "llama.cpp without AMX, tuned draft": Machine(STEPPED, HEAVY),
    "135M, 135M draft": Machine(TINY, SMALL),
}
