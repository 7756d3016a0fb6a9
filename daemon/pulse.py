"""How the front sees the engine at work: a page of memory that both map, written before each piece of work.

    page = count:u64 read:u64 allowed:f64 rows:u64 stage:u8 requests:u8 key:u64*       (native byte order)

`count` grows with every beat, and a beat says how long the next one may take: that grows with the work
begun, so a long prefill is no hang and a stuck call is one, however alive its process looks. `read` counts
the front's messages: an engine that has read them all and does nothing is idle, not stuck. The keys name the
requests at work, so that one that ends engines is told from those that wait. No times are shared: the front
adds up how long `count` stood still, in steps of its own clock that a stop of the whole machine (or of front
and engine together, as by Ctrl-Z) can't stretch.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

HEAD = struct.Struct("=QQdQBB")
SIZE = HEAD.size + 8 * 255
STAGES = ("starting", "loading", "waiting", "reading a request", "drafting", "a pass of the target")
STARTING, LOADING, IDLE, READING, DRAFTING, FORWARD = range(len(STAGES))

FACTOR = 20.0  # how much longer than expected a pass may take: a busy machine, a deep context, swapped pages
CHUNK = 512  # rows of the widest pass that costs are kept for
READ_RATE = 1e5  # bytes of a message a second, at the least: template, tokens, grammar
LOAD_SECONDS = 1800.0  # between two reports of a load that keeps a processor busy


class PassCosts(Protocol):
    def seconds(self, rows: int) -> float: ...


class Pulse:
    """The engine's end: beat() before each piece of work."""

    def __init__(self, file: int, seconds: float) -> None:
        """`file`: the inherited page; `seconds`: what any step may take before its work is counted in."""
        self._page = mmap.mmap(file, SIZE)
        os.close(file)
        self._seconds = seconds
        self._count = 0
        self._read = 1  # the settings

    def beat(self, stage: int, *, rows: int = 0, keys: Sequence[int] = (), expected: float = 0.0) -> None:
        """Something ended and `stage` begins, which should take `expected` seconds."""
        self._count += 1
        allowed, keys = self._seconds + FACTOR * expected, keys[:255]
        struct.pack_into(f"={len(keys)}Q", self._page, HEAD.size, *keys)
        HEAD.pack_into(self._page, 0, self._count, self._read, allowed, rows, stage, len(keys))

    def step(self, stage: int, rows: int, keys: Sequence[int], costs: PassCosts) -> None:
        """A pass of so many rows begins, or the draft's work on them."""
        chunks, rest = divmod(rows, CHUNK)
        expected = chunks * costs.seconds(CHUNK) + (costs.seconds(rest) if rest else 0.0)
        self.beat(stage, rows=rows, keys=keys, expected=expected)

    def read(self, size: int, keys: Sequence[int]) -> None:
        """A message of `size` bytes is taken in."""
        self._read += 1
        self.beat(READING, keys=keys, expected=size / READ_RATE / FACTOR)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the page says."""

    count: int
    read: int
    allowed: float  # seconds
    rows: int
    stage: int
    keys: tuple[int, ...]

    def idle(self, sent: int) -> bool:
        """Is there nothing that it should be at, after `sent` messages?"""
        return self.stage == IDLE and self.read == sent

    @property
    def words(self) -> str:
        return STAGES[self.stage] + (f" of {self.rows} rows" if self.stage == FORWARD else "")


class Watch:
    """The front's end: how long the engine has not moved."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: what a step may take before its work is counted in; it also sets how often to look."""
        self.file = os.memfd_create("draftd-pulse")
        os.ftruncate(self.file, SIZE)
        self._page = mmap.mmap(self.file, SIZE)
        HEAD.pack_into(self._page, 0, 0, 0, seconds, 0, STARTING, 0)
        self.every = min(1.0, seconds / 8)
        self.still = 0.0  # seconds for which the count has not moved
        self._silent = 0.0  # the same, where the processor time of a load counts as movement
        self._seconds = seconds
        self._count = -1
        self._worked = 0.0
        self._looked = time.monotonic()

    def read(self) -> Reading:
        count, read, allowed, rows, stage, requests = HEAD.unpack_from(self._page)
        keys = struct.unpack_from(f"={requests}Q", self._page, HEAD.size)
        return Reading(count, read, allowed, rows, stage, keys)

    def due(self) -> bool:
        """Is it worth a look again?"""
        return time.monotonic() - self._looked >= 0.9 * self.every

    def look(self, sent: int, worked: float) -> Reading:
        """Read the page and add up; `sent`: messages that the engine has got.

        `worked`: processor seconds so far of the engine and its children, asked for while it loads.
        """
        reading = self.read()
        now = time.monotonic()
        passed = min(now - self._looked, 2 * self.every)
        self._looked = now
        if reading.count != self._count or reading.idle(sent):
            self.still = self._silent = 0.0
        else:
            self.still += passed
            self._silent = 0.0 if worked > self._worked else self._silent + passed
        self._count, self._worked = reading.count, worked
        return reading

    def stuck(self, reading: Reading, patience: float) -> bool:
        """Has it stood still for longer than it may? `patience` multiplies what it may."""
        if reading.stage in (STARTING, LOADING):
            return self._silent > patience * self._seconds or self.still > patience * LOAD_SECONDS
        return self.still > patience * reading.allowed

    def close(self) -> None:
        self._page.close()
        os.close(self.file)
