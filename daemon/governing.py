"""The governor at work in the front: look at the machine, tell the engine, turn requests away."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from draftd.daemon import machine, readings
from draftd.daemon.governor import WORDS, Governor, Marks, Reading, Rung
from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.settings import Settings
from draftd.daemon.threads import Threads
from draftd.ipc.errors import Overloaded

log = logging.getLogger("draftd.front")

BUSY, IDLE = 1.0, 5.0  # seconds between two looks, while requests run and while none does
TRIM = 30.0  # seconds between two times that what connections and answers left behind is given back
SHORTEST = 0.5  # seconds that the use of the processor is told from, at least


class Governing:
    """Keeps the engine on the governor's rung and at as many threads as the load leaves cores."""

    def __init__(
        self, settings: Settings, life: Lifecycle, tell_engine: Callable[[dict[str, Any]], None]
    ) -> None:
        self.settings = settings
        self.life = life
        self.tell_engine = tell_engine
        self.governor = Governor(_marks(settings))
        self._cores = machine.usable()
        self.threads = _threads(settings)
        self.reading = Reading()  # the latest
        self.others = 0.0  # cores that other programs use
        self._looked = -IDLE
        self._trimmed = 0.0
        self._used = self._cpu_use(time.monotonic())
        self._told: tuple[int, Rung, int] | None = None  # which engine, and what it knows

    def tick(self, now: float) -> float:
        """Look if it is time to, and see that the engine knows; when to look again."""
        every = min(self.settings.governor_dwell, BUSY if len(self.life.jobs) else IDLE)
        if now - self._looked >= every:
            self._looked = now
            self._look(now)
        if self.life.state == "ready":
            self._tell()
        return self._looked + every

    def adopt(self, settings: Settings) -> None:
        """Go by other marks from here on."""
        self.settings = settings
        if settings.governor:
            self.governor.marks = _marks(settings)
        else:
            self.governor = Governor(_marks(settings))  # on the top rung: it turns nobody away any more
        self.threads = _threads(settings)
        self.life.lifetime.adopt(settings.keep_alive, time.monotonic())

    def admit(self) -> None:
        """A request wants in: Overloaded while the machine has nothing left for new ones."""
        if self.governor.rung >= Rung.REFUSE:
            wait = round(max(1.0, self.governor.admits_in(time.monotonic())), 1)
            why = self.governor.why
            raise Overloaded(f"draftd takes no new requests, since {why}: try again in {wait:.0f} s", wait)
        if self.settings.follow_load and not len(self.life.jobs):
            self._wake(time.monotonic())

    def report(self) -> dict[str, Any]:
        """For `status`: the rung and why, threads, the cores that others use, and °C if a sensor tells."""
        rung = self.governor.rung
        return {
            "rung": int(rung),
            "does": WORDS[rung],
            "why": self.governor.why,
            "threads": self.threads.count,
            "others_use_cores": round(self.others, 2),
            "temperature": self.reading.temperature,
        }

    def _look(self, now: float) -> None:
        if now - self._trimmed >= TRIM:  # else the heap wears to pieces: +2 % a quarter of an hour under load
            self._trimmed = now
            machine.trim()
        if self.settings.follow_load:
            self._follow_load(now)
        before = self.governor.rung
        self.reading = readings.read() if self.settings.governor else Reading()
        rung = self.governor.step(self.reading, now)
        if rung is not before:
            log.warning("%s: %s", WORDS[rung], self.governor.why or "the machine has room again")
        if rung is Rung.UNLOAD:
            self.life.lifetime.unload(now)

    def _follow_load(self, now: float) -> None:
        if self._used is not None and now - self._used[0] < SHORTEST:
            return  # a request came after a pause: the next look tells
        before, self._used = self._used, self._cpu_use(now)
        if before is None or self._used is None or before[2] != self._used[2] or now <= before[0]:
            return  # another engine: its seconds can't be told from the others'
        self.others = max(0.0, self._used[1] - before[1]) / (now - before[0])
        self.threads.step(self.others, now)

    def _wake(self, now: float) -> None:
        """A request after a pause: what others used in the pause says nothing of the seconds to come."""
        self._used = self._cpu_use(now)
        if self.threads.count < self.threads.most:
            others = readings.runnable()
            if others is not None:
                self.threads.wake(others - 1)  # the front itself is one of them
                if self.life.state == "ready":
                    self._tell()  # before the request reaches the engine

    def _cpu_use(self, now: float) -> tuple[float, float, int] | None:
        """When it is, seconds that all programs but draftd have computed, and the engine's process."""
        seconds = readings.cpu_seconds(self._cores)
        if seconds is None:
            return None
        engine = self.life.engine.process
        pid = engine.pid if engine is not None else 0
        own = readings.process_seconds(os.getpid()) + (readings.process_seconds(pid) if pid else 0.0)
        return now, seconds - own, pid

    def _tell(self) -> None:
        """Each engine begins on the top rung and with all threads: say so where that is wrong."""
        pid = self.life.info.get("pid", 0)
        told = self._told if self._told and self._told[0] == pid else (pid, Rung.NORMAL, self.threads.most)
        if told[1] is not self.governor.rung:
            self.tell_engine({"type": "govern", "rung": int(self.governor.rung)})
        if told[2] != self.threads.count:
            self.tell_engine({"type": "threads", "count": self.threads.count})
        self._told = (pid, self.governor.rung, self.threads.count)


def _marks(settings: Settings) -> Marks:
    return Marks(
        memory_stall=settings.memory_stall,
        memory_available=settings.memory_low,
        temperature=settings.heat,
        battery=settings.battery_low,
        dwell=settings.governor_dwell,
    )


def _threads(settings: Settings) -> Threads:
    most = settings.threads or machine.cores()
    return Threads(max(most, len(machine.usable())), most)
