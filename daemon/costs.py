"""How long a pass of one model takes by the number of rows in it, measured while it works."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from math import exp, log

# Powers of two, as kernels take rows in tiles of these sizes: a pass of whole tiles is the cheapest near by.
KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHORTEST, LONGEST = 1e-7, 3600.0  # seconds a pass may take to be believed
SEEN = 0.5  # observations that make a knot one that was seen
KNOWN = 1.5  # with fewer it is filled in from its neighbours: one may have been a hiccup
MEMORY = 100.0  # observations that a knot remembers
FADE = 1.0 / 2000.0  # share of that which an observation elsewhere takes: what is not seen again is forgotten
DRIFT = 0.15  # share of a deviation that counts as the machine's own speed
CLIP = 0.2  # a deviation's most, as a logarithm: level and shape must clip alike, or one drags the other off
JUMP = 4  # so many deviations of one sign beyond the clip are no hiccups: the machine has changed


class Costs:
    """Seconds a pass by rows: straight lines between knots that never fall, times the machine's level.

    The level follows what recent passes of any width have in common (a busy machine), so that a width
    not seen for long stays comparable with those seen now. Hiccups only ever make a pass slower: an
    observation far above what is believed moves it little, one far below moves it at once.
    """

    def __init__(self, level: float, slope: float) -> None:
        """`level`: seconds of one row; `slope`: of a further row over that of one; both before any pass."""
        self.level = level
        self.slope = slope
        self.shape = [1.0 + slope * (knot - 1) for knot in KNOTS]  # seconds over level
        self.weight = [0.0] * len(KNOTS)  # observations behind each knot
        self.observed = 0
        self._recent: deque[float] = deque(maxlen=JUMP)  # logarithms of observed over believed
        self._curve = list(self.shape)
        self._table: list[float] = []

    def observe(self, rows: int, seconds: float) -> None:
        """Take in one pass; ones that can't be (or are wider than the last knot) are left out."""
        if not (1 <= rows <= KNOTS[-1] and SHORTEST <= seconds <= LONGEST):
            return
        if not self.observed:
            self.level = seconds / self._relative(rows)
        self.observed += 1
        self.fade()
        left, share = _place(rows)
        known = min(self.weight[left], self.weight[left + 1] if share else self.weight[left])
        deviation = log(seconds / self.seconds(rows))
        if known >= 2.0:
            self._recent.append(deviation)
            step = DRIFT * max(-CLIP, min(CLIP, deviation))
            if len(self._recent) == JUMP and (min(self._recent) > CLIP or max(self._recent) < -CLIP):
                step = sorted(self._recent)[JUMP // 2]
                self._recent.clear()
            self.level *= exp(step)
            deviation -= step
        self._move(left, share, deviation)
        self._rebuild()
        self._settle()

    def fade(self) -> None:
        """A pass went by: what was seen counts a little less."""
        self.weight = [weight - FADE * weight for weight in self.weight]

    def _move(self, left: int, share: float, deviation: float) -> None:
        """Bring the two knots around a width nearer to what was seen there."""
        norm = (1.0 - share) ** 2 + share**2
        for knot, part in ((left, 1.0 - share), (left + 1, share)):
            if not part:
                continue
            weight = self.weight[knot]
            if weight >= 3.0:
                step = max(-CLIP, min(CLIP, deviation)) / (1.0 + weight)
            elif deviation < -2.0 * CLIP:  # what was believed came from a hiccup
                step = deviation
            elif weight < KNOWN:
                step = min(deviation, 1.4)
            else:
                step = min(deviation, 0.3) / (1.0 + weight)
            shape = self._curve[knot] * exp(step * part / norm)
            # Not believed yet, so it is not in the curve: of two the quicker.
            self.shape[knot] = min(self.shape[knot], shape) if SEEN <= weight < KNOWN else shape
            self.weight[knot] = min(MEMORY, weight + part)

    def _rebuild(self) -> None:
        """The curve through what is known: never falling, straight between, cautious beyond."""
        known = [index for index, weight in enumerate(self.weight) if weight >= KNOWN]
        self._table = []
        if not known:
            left = max(range(len(KNOTS)), key=lambda index: self.weight[index])
            scale = self.shape[left] / (1.0 + self.slope * (KNOTS[left] - 1))
            self._curve = [scale * (1.0 + self.slope * (knot - 1)) for knot in KNOTS]
            return
        values = _never_falling([(self.shape[index], self.weight[index]) for index in known])
        first, last = known[0], known[-1]
        curve = [0.0] * len(KNOTS)
        for index, value in zip(known, values, strict=True):
            curve[index] = value
        for index in range(first):
            ratio = (1.0 + self.slope * (KNOTS[index] - 1)) / (1.0 + self.slope * (KNOTS[first] - 1))
            curve[index] = values[0] * ratio
        for (one, low), (other, high) in zip(
            zip(known, values, strict=True), zip(known[1:], values[1:], strict=True), strict=False
        ):
            for index in range(one + 1, other):
                share = (KNOTS[index] - KNOTS[one]) / (KNOTS[other] - KNOTS[one])
                curve[index] = low + share * (high - low)
        if last > 0:
            rise = (values[-1] - curve[0]) / (KNOTS[last] - 1)
            slope = max(rise, 0.003 * curve[0])
        else:
            slope = self.slope * values[-1]
        for index in range(last + 1, len(KNOTS)):
            curve[index] = values[-1] + slope * (KNOTS[index] - KNOTS[last])
        self._curve = curve

    def _settle(self) -> None:
        """Let the level be one row's seconds: left free, it and the shape drift apart without end."""
        one = self._curve[0]
        self.level *= one
        self.shape = [value / one for value in self.shape]
        self._curve = [value / one for value in self._curve]

    def _relative(self, rows: int) -> float:
        left, share = _place(rows)
        low = self._curve[left]
        return low + share * (self._curve[left + 1] - low) if share else low

    def seconds(self, rows: int) -> float:
        """What a pass of so many rows (at least one) is expected to take now."""
        return self.level * self._relative(rows)

    def table(self, rows: int) -> list[float]:
        """`seconds` of every width up to `rows` at least, by width; the entry of 0 is 0."""
        if len(self._table) <= rows:
            table = [0.0]
            for index, knot in enumerate(KNOTS[:-1]):
                after, low = KNOTS[index + 1], self._curve[index]
                slope = (self._curve[index + 1] - low) / (after - knot)
                table += [low + slope * more for more in range(after - knot)]
                if after > rows:
                    break
            self._table = table
        level = self.level
        return [level * value for value in self._table]

    def known(self, rows: int) -> bool:
        """Was a pass about this wide ever seen?"""
        left, share = _place(rows)
        return self.weight[left if share < 0.5 else left + 1] >= SEEN

    def measured(self) -> dict[str, float]:
        """Milliseconds by rows, where passes of about that width were seen."""
        return {
            str(knot): round(1000.0 * self.level * value, 2)
            for knot, value, weight in zip(KNOTS, self._curve, self.weight, strict=True)
            if weight >= SEEN
        }

    def dump(self) -> dict[str, object]:
        return {"level": self.level, "shape": list(self._curve), "weight": list(self.weight)}

    def restore(self, level: float, shape: list[float], weight: list[float]) -> None:
        """Start from an earlier run's figures, trusting them less than fresh ones."""
        self.level = level
        self.shape = list(shape)
        self.weight = [min(value, 10.0) for value in weight]
        self.observed = 1 if any(weight) else 0
        self._rebuild()


def _place(rows: int) -> tuple[int, float]:
    """The knot at or before a width, and how far the width is towards the next one."""
    left = min(bisect_right(KNOTS, rows) - 1, len(KNOTS) - 2)
    return left, (rows - KNOTS[left]) / (KNOTS[left + 1] - KNOTS[left])


def _never_falling(points: list[tuple[float, float]]) -> list[float]:
    """Weighted isotonic regression of (value, weight) points: pool neighbours that fall."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in points:
        count = 1
        while pools and pools[-1][0] > value:
            before, heavy, many = pools.pop()
            value = (before * heavy + value * weight) / (heavy + weight)
            weight, count = heavy + weight, count + many
        pools.append((value, weight, count))
    return [value for value, _, count in pools for _ in range(count)]
