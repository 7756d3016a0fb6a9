"""How far the daemon steps back for the rest of the machine: readings in, a rung of the ladder out.

Pure: readings and times come in as arguments. One rung at a time, since each takes a while to show: down once
a reading has been over its mark for `dwell` seconds, and up again once all have been clear of theirs (by a
margin) for four times as long. Where a step up brings the lack back, since the machine has no room for what
it takes up again, the next one waits twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum


class Rung(IntEnum):
    """What each step down adds to the ones above it."""

    NORMAL = 0
    SHORT_DRAFTS = 1
    DROP_CACHES = 2
    NO_DRAFT = 3
    REFUSE = 4
    UNLOAD = 5


WORDS = {
    Rung.NORMAL: "normal",
    Rung.SHORT_DRAFTS: "shorter drafts",
    Rung.DROP_CACHES: "idle caches dropped",
    Rung.NO_DRAFT: "draft unloaded",
    Rung.REFUSE: "new requests refused",
    Rung.UNLOAD: "target unloaded",
}

UP = 4  # times the dwell that all must have been clear before a step up
RELAPSE = 120  # times the dwell after a step up in which a step down is a relapse
DOUBLINGS = 4  # of the wait for a step up, at most
ROOMY = 40.0  # percent available, above which a stall is some other program's limit and no lack of memory


@dataclass(frozen=True, slots=True)
class Reading:
    """What was seen of the machine; None: it can't be told here."""

    memory_stall: float | None = None  # percent of the last 10 s in which some task waited for memory
    memory_available: float | None = None  # percent of the machine's memory, or of the cgroup's limit
    temperature: float | None = None  # °C, the hottest sensor's
    on_battery: bool | None = None
    battery: float | None = None  # percent of its charge


@dataclass(frozen=True, slots=True)
class Marks:
    """Where each reading makes the daemon step down, and for how many seconds it must have been there."""

    memory_stall: float = 10.0
    memory_available: float = 5.0
    temperature: float = 95.0
    battery: float = 20.0
    dwell: float = 5.0


class Governor:
    """Where on the ladder the daemon stands, and why."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.rung = Rung.NORMAL
        self.why = ""
        self._down_since: float | None = None  # since when a reading has asked for a lower rung
        self._up_since: float | None = None  # since when none has asked to stay
        self._rose: float | None = None  # when the first step up behind the last step down was
        self._relapses = 0

    def step(self, reading: Reading, now: float) -> Rung:
        """Take a reading at `now` (seconds, monotonic) and give the rung that holds from here on."""
        if self._rose is not None and now - self._rose >= RELAPSE * self.marks.dwell:
            self._rose, self._relapses = None, 0
        asking = [(limit, words) for limit, words in _over(reading, self.marks) if limit > self.rung]
        if asking:
            self._up_since = None
            self._down_since = now if self._down_since is None else self._down_since
            if now - self._down_since >= self.marks.dwell:
                self.rung = Rung(self.rung + 1)
                self.why = max(asking)[1]
                self._down_since = now
                if self._rose is not None:
                    self._rose, self._relapses = None, min(self._relapses + 1, DOUBLINGS)
            return self.rung
        self._down_since = None
        eased = _over(reading, _eased(self.marks))
        staying = [(limit, words) for limit, words in eased if limit >= self.rung]
        if not self.rung:
            self.why = ""
        elif staying:
            self._up_since = None
            self.why = max(staying)[1]
        else:
            self.why = "what asked for this has passed: stepping up slowly"
            self._up_since = now if self._up_since is None else self._up_since
            if now - self._up_since >= self._wait():
                self.rung = Rung(self.rung - 1)
                self._up_since = now
                self._rose = now if self._rose is None else self._rose
                self.why = self.why if self.rung else ""
        return self.rung

    def admits_in(self, now: float) -> float:
        """Seconds until requests may be taken again, if all readings stay clear of their marks."""
        rungs = max(0, self.rung - Rung.REFUSE + 1)
        clear = 0.0 if self._up_since is None else now - self._up_since
        return max(0.0, rungs * self._wait() - clear)

    def _wait(self) -> float:
        """Seconds that all must have been clear before a step up."""
        return float(UP * self.marks.dwell * 2**self._relapses)


def _over(reading: Reading, marks: Marks) -> Iterator[tuple[Rung, str]]:
    """The readings over their marks: the lowest rung that each justifies, and what to say of it.

    Only memory is worth unloading the target for: a refused request already computes and heats nothing.
    """
    stall, available = reading.memory_stall, reading.memory_available
    if stall is not None and stall >= marks.memory_stall and (available is None or available < ROOMY):
        yield Rung.UNLOAD, f"tasks wait for memory {stall:.0f} % of the time"
    if available is not None and available <= marks.memory_available:
        yield Rung.UNLOAD, f"{available:.0f} % of the memory is available"
    if reading.temperature is not None and reading.temperature >= marks.temperature:
        yield Rung.REFUSE, f"a sensor reads {reading.temperature:.0f} °C"
    if reading.on_battery:
        yield Rung.SHORT_DRAFTS, "on battery"
        if reading.battery is not None and reading.battery <= marks.battery:
            yield Rung.REFUSE, f"the battery is at {reading.battery:.0f} %"


def _eased(marks: Marks) -> Marks:
    """The marks that a reading must be clear of before the daemon steps up."""
    return Marks(
        memory_stall=marks.memory_stall / 2,
        memory_available=marks.memory_available * 1.5,
        temperature=marks.temperature - 5.0,
        battery=marks.battery + 5.0,
    )
