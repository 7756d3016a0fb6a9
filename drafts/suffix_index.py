"""Where a context stood before: a growing text whose positions are sorted by what stands to their left.

Positions with the same left context stand side by side in such an order, so the longest match is a binary
search and all its occurrences are one range. The order is kept in runs: the newest positions in a short list
that takes single insertions, the others in arrays of at most RUN that numpy sorts and that never change;
neighbours of similar size are sorted again into one. Dropping the oldest run bounds the memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

END = 0xFFFFFFFF  # stands between sequences; never a token
NOTHING = 0xFFFFFFFE  # fills a left context shorter than DEPTH; never in a text
DEPTH = 32  # tokens of left context that positions are sorted by; longer matches are compared in full
RUN = 65536  # positions in a run at most: offsets fit 16 bits, and sorting one takes tens of milliseconds
TAIL = 256  # positions in the list of the newest
CANDIDATES = 64  # occurrences looked at, the newest ones
FULL = 4096  # tokens of left context that count at most
WIDTH = array("I").itemsize  # bytes of a token


@dataclass(slots=True)
class Run:
    """Positions `start` to `end` (exclusive) as sorted offsets; None until its turn to be sorted comes."""

    start: int
    end: int
    order: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Match:
    """The longest suffix of a context that stood before: its length, and where it ended, the newest first."""

    length: int
    positions: list[int]


class Text:
    """Sequences of tokens one behind the other, and the order of their positions."""

    def __init__(self, run: int = RUN) -> None:
        self.tokens = array("I", [END] * DEPTH)  # the first DEPTH are left context only
        self._run = min(run, RUN)
        self._runs: list[Run] = []  # oldest first, no gaps; the last may be the list of the newest

    def __len__(self) -> int:
        return len(self.tokens) - DEPTH

    def append(self, tokens: Iterable[int], *, later: bool = False) -> None:
        """Add tokens at the end; `later` leaves them to be sorted by `settle`, a run a call."""
        self.tokens.extend(tokens)
        start, end = self._sorted_to(), len(self.tokens) - 1  # nothing follows the last token yet
        if later:
            self._runs += self._split(start, end)
        elif end - start <= TAIL:
            self._insert(start, end)
        else:
            self._sort(start, end)

    def end_sequence(self) -> None:
        """What comes next does not continue what stands there."""
        self.tokens.append(END)

    def settle(self) -> bool:
        """Sort the newest run that waits; False when none does."""
        for run in reversed(self._runs):
            if run.order is None:
                run.order = _sorted(self.tokens, run.start, run.end)
                return True
        return False

    def left_context(self) -> bytes:
        """The text's last tokens, newest first, as `find` takes them."""
        window = self.tokens[-1 : -DEPTH - 1 : -1]
        size = min(len(self), DEPTH)
        return (window[:size] + array("I", [NOTHING]) * (DEPTH - size)).tobytes()

    def find(self, context: bytes) -> Match:
        """The longest match of a left context, cut at DEPTH, at positions that a token follows."""
        lengths = [(self._longest(run, context), run) for run in reversed(self._runs) if run.order]
        length = max((length for length, _ in lengths), default=0)
        positions: list[int] = []
        if length:
            start = context[: length * WIDTH]
            for each, run in lengths:
                if each == length:
                    positions += self._occurrences(run, start, CANDIDATES - len(positions))
        return Match(length, positions)

    def following(self, position: int, limit: int) -> list[int]:
        """Up to `limit` tokens behind a position, as far as its sequence goes."""
        tokens = self.tokens[position + 1 : position + 1 + limit].tolist()
        return tokens[: tokens.index(END)] if END in tokens else tokens

    def drop_oldest(self) -> int:
        """Forget the oldest run; how many tokens that were."""
        if not self._runs:
            return 0
        gone = self._runs[0].end - DEPTH
        del self._runs[0], self.tokens[:gone]  # the next run's left context stays
        for run in self._runs:
            run.start -= gone
            run.end -= gone
        return gone

    def _sorted_to(self) -> int:
        return self._runs[-1].end if self._runs else DEPTH

    def _split(self, start: int, end: int) -> list[Run]:
        return [Run(at, min(at + self._run, end), None) for at in range(start, end, self._run)]

    def _insert(self, start: int, end: int) -> None:
        """Put positions one by one into the list of the newest; a full list becomes a run."""
        if not self._runs or not isinstance(self._runs[-1].order, list):
            self._runs.append(Run(start, start, []))
        tail = self._runs[-1]
        assert isinstance(tail.order, list)
        key = self._key(DEPTH, tail.start)
        for position in range(start, end):
            if END not in (self.tokens[position], self.tokens[position + 1]):
                offset = position - tail.start
                tail.order.insert(bisect_left(tail.order, key(offset), key=key), offset)
        tail.end = end
        if tail.end - tail.start > min(TAIL, self._run):
            del self._runs[-1]
            self._sort(tail.start, tail.end)

    def _sort(self, start: int, end: int) -> None:
        """Make the newest positions runs, together with older runs that are not larger: so there are few."""
        while self._runs and self._runs[-1].end - self._runs[-1].start <= min(end - start, self._run - 1):
            start = self._runs.pop().start
        for run in self._split(start, end):
            run.order = _sorted(self.tokens, run.start, run.end)
            self._runs.append(run)

    def _key(self, depth: int, start: int) -> Callable[[int], bytes]:
        """The left context of a position as comparable bytes."""
        tokens = self.tokens

        def key(offset: int) -> bytes:
            position = start + offset
            return tokens[position : position - depth : -1].tobytes()

        return key

    def _longest(self, run: Run, context: bytes) -> int:
        assert run.order is not None
        key = self._key(DEPTH, run.start)
        place = bisect_left(run.order, context, key=key)
        return max(_common(context, key(offset)) for offset in run.order[max(place - 1, 0) : place + 1])

    def _occurrences(self, run: Run, context: bytes, most: int) -> list[int]:
        """Positions of a run, newest first, whose left context starts with these bytes."""
        assert run.order is not None
        if most <= 0:
            return []
        key = self._key(len(context) // WIDTH, run.start)
        low = bisect_left(run.order, context, key=key)
        high = bisect_right(run.order, context, lo=low, key=key)
        offsets = np.sort(np.asarray(run.order[low:high], np.uint16))[::-1][:most]
        return [run.start + offset for offset in offsets.tolist()]


def common_suffix(one: array[int], one_end: int, other: array[int], other_end: int, most: int) -> int:
    """How many tokens before two ends (exclusive) are equal, `most` at most."""
    most = min(most, one_end, other_end)
    left = np.frombuffer(one, np.uint32)[one_end - most : one_end]
    right = np.frombuffer(other, np.uint32)[other_end - most : other_end]
    different = np.flatnonzero(left != right)
    return most - 1 - int(different[-1]) if len(different) else most


def _common(one: bytes, other: bytes) -> int:
    """How many leading tokens of two left contexts are equal."""
    difference = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return (len(one) * 8 - difference.bit_length()) // (WIDTH * 8)


def _sorted(tokens: array[int], start: int, end: int) -> memoryview:
    """Offsets of the positions that a token follows, by left context; prefix doubling (Manber, Myers)."""
    text = np.frombuffer(tokens, np.uint32)[start - DEPTH : end + 1]
    window = text[end - start + DEPTH - 1 :: -1]  # [positions + DEPTH], newest first
    rank = window.byteswap().astype(np.uint64)  # so that numbers compare as their bytes do
    depth = 1
    while depth < DEPTH:
        pair = rank << np.uint64(32)
        pair[:-depth] |= rank[depth:]
        order = np.argsort(pair)
        ascending = pair[order]
        rank[order] = np.concatenate(([0], np.cumsum(ascending[1:] != ascending[:-1])))
        depth *= 2
        if rank[order[-1]] == len(order) - 1:  # all differ already
            break
    offsets = end - start - 1 - order
    offsets = offsets[offsets >= 0]
    follows = (text[DEPTH:-1] != END) & (text[DEPTH + 1 :] != END)  # [positions]
    return memoryview(offsets[follows[offsets]].astype(np.uint16))
