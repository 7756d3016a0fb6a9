"""When the engine is wanted: who holds it, how long it stays when nobody does, and what was asked for.

Pure: times come in as arguments, and `next` says what to do about the process. A request takes its lease
before anything else is done for it, and only an engine without leases is ended, so no timer can take the
engine from under a request: one that comes while the engine leaves waits for the next one.
"""

from __future__ import annotations

from enum import Enum
from math import inf


class Stage(Enum):
    OUT = "out"
    LOADING = "loading"
    IN = "in"
    LEAVING = "leaving"


class Lifetime:
    """One engine's comings and goings; `keep_alive` in seconds, 0: at once, negative: for ever."""

    def __init__(self, keep_alive: float) -> None:
        self.keep_alive = keep_alive  # of whoever gives none of his own
        self.stage = Stage.OUT
        self.leases: set[int] = set()
        self.leaves_at = inf  # when the engine leaves if nobody takes a lease before
        self.wanted = False  # asked for by `load`, without a lease
        self._told = False  # `unload` was asked for, and outlives the requests that run
        self._asked: float | None = None  # what the newest lease or load asked for, if anything

    def acquire(self, lease: int) -> None:
        """A request begins: from here to its release the engine comes, or stays."""
        self.leases.add(lease)

    def release(self, lease: int, now: float, keep_alive: float | None = None) -> None:
        """A request has ended; the engine stays as long as the last to end asked for."""
        self.leases.remove(lease)
        self._asked = keep_alive
        if not self.leases:
            self._rest(now)

    def load(self, now: float, keep_alive: float | None = None) -> None:
        """The engine is to come, and to stay for a while, though there is no request yet."""
        self._asked = keep_alive
        self.wanted, self._told = self.stage in (Stage.OUT, Stage.LEAVING), False
        self._rest(now)

    def adopt(self, keep_alive: float, now: float) -> None:
        """Go by another time from now on, but for what the newest lease or load asked for itself."""
        changed, self.keep_alive = keep_alive != self.keep_alive, keep_alive
        if changed and self._asked is None:
            self._rest(now)

    def unload(self, now: float) -> None:
        """The engine is to leave as soon as no request holds it."""
        self.wanted, self._told = False, self.stage in (Stage.LOADING, Stage.IN)
        self._rest(now)

    def next(self, now: float) -> str | None:
        """What is to be done at this moment: "start" or "stop" the process, or nothing."""
        match self.stage:
            case Stage.OUT if self.leases or self.wanted:
                self.stage, self.wanted, self.leaves_at = Stage.LOADING, False, inf
                return "start"
            case Stage.LOADING | Stage.IN if not self.leases and now >= self.leaves_at:
                self.stage, self._told = Stage.LEAVING, False
                return "stop"
        return None

    def look_at(self) -> float:
        """When `next` may have something new to say though nothing has happened."""
        idle = self.stage in (Stage.LOADING, Stage.IN) and not self.leases
        return self.leaves_at if idle else inf

    def ready(self, now: float) -> None:
        """The engine has loaded: only now does it begin to idle."""
        if self.stage is Stage.LOADING:
            self.stage = Stage.IN
            self._rest(now)

    def restarts(self) -> None:
        """The engine died unasked or is to be replaced: another takes over."""
        if self.stage is not Stage.LEAVING:
            self.stage, self.leaves_at = Stage.LOADING, inf

    def gone(self) -> None:
        """The process that was to stop has ended."""
        self.stage = Stage.OUT

    def _rest(self, now: float) -> None:
        """Set the timer; it does not run while the engine loads, whoever caused that and left."""
        stays = self.keep_alive if self._asked is None else self._asked
        loading = self.stage is Stage.LOADING
        self.leaves_at = now if self._told else inf if stays < 0 or loading else now + stays
