"""The engine's life as the front sees it: loading, ready, restarting, failed, and what it says of itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from typing import Any, Literal

import zmq

from draftd.daemon.clears import Clears
from draftd.daemon.jobs import Jobs
from draftd.daemon.lifetime import Lifetime, Stage
from draftd.daemon.supervisor import BACKOFF, STOP_SECONDS, EngineProcess
from draftd.ipc.errors import DraftdError, EngineFailed, from_code

log = logging.getLogger("draftd.front")


class Lifecycle:
    """Starts the engine, hears it, and replaces it when it dies; its sockets are in the front's poller.

    Whether there is to be an engine is the lifetime's to say (lifetime.py).
    """

    def __init__(
        self,
        engine: EngineProcess,
        poller: zmq.Poller,
        jobs: Jobs,
        clears: Clears,
        lifetime: Lifetime,
        pair: str,
    ) -> None:
        self.engine = engine
        self.poller = poller
        self.jobs = jobs
        self.clears = clears
        self.lifetime = lifetime
        self.pair = pair
        self.state: Literal["loading", "ready", "restarting", "unloaded", "failed"] = "loading"
        self.detail = "loading 0 %"
        self.progress = 0.0
        self.info: dict[str, Any] = {}
        self.learnt: dict[str, Any] = {}
        self.failure: DraftdError | None = None  # why the pair can't be loaded: the daemon's end
        self.fall_back: Callable[[DraftdError], None] | None = None  # instead of that end, after a reload
        self.load_failed: Callable[[DraftdError], None] = lambda failure: None  # tells who asked for a load
        self._was_ready = False
        self._leaves_by = inf  # monotonic seconds: when an engine that was told to end is made to

    def start(self) -> None:
        """Start an engine; it goes on with what the last one left unfinished."""
        if why_not := self.engine.start():
            self._ended(why_not)
            return
        self.poller.register(self.engine.socket, zmq.POLLIN)
        self.poller.register(self.engine.exit_fd, zmq.POLLIN)
        self.jobs.submit_all()
        self.clears.submit_all()

    def tick(self, now: float) -> float | None:
        """End an engine that hangs, start or end one when its time has come; when to look again."""
        self.engine.look()
        match self.lifetime.next(now):
            case "start":
                self.state, self.detail, self.progress = "loading", "loading 0 %", 0.0
                self.start()
            case "stop":
                self._leave(now)
        if (self.lifetime.stage is Stage.OUT or self.state == "failed") and self.clears.clear_here():
            self.learnt = {}
        if self.engine.restart_at is not None and now >= self.engine.restart_at:
            self.start()
        if now >= self._leaves_by:
            self.engine.kill(now)
            self._leaves_by = now + STOP_SECONDS
        look = self.engine.next_look()
        moment = min(inf if look is None else look, self.lifetime.look_at(), self._leaves_by)
        return None if moment == inf else moment

    def gets_on(self, now: float) -> bool:
        """Whether a watchdog may be content: hangs and crashes are dealt with, unkillable engines are not."""
        return not self.engine.unkillable(now)

    def replace(self, load: dict[str, Any], pair: str) -> None:
        """Let another engine take over, with another first message; open requests go on there."""
        self.engine.load, self.pair, self.learnt = load, pair, {}
        if self.lifetime.stage in (Stage.OUT, Stage.LEAVING):
            return  # the next to be loaded
        self.lifetime.restarts()
        self.detail = "the configuration has changed: another engine is being started"
        self.engine.crashes = 0
        if self.engine.process is None:
            self.state = "restarting"
            self.start()
            return
        self.engine.send({"type": "stop"})
        if self.state != "ready":
            self.engine.process.terminate()  # one that loads does not listen
        self.state = "restarting"
        self._leaves_by = time.monotonic() + STOP_SECONDS

    def keep(self, settings: dict[str, Any], names: set[str]) -> None:
        """The engine stays: tell it how to log from here on; the next one starts with all that changed."""
        self.engine.load["settings"] |= {name: settings[name] for name in names}
        if names & {"log_level", "log_content"}:
            told = {"level": settings["log_level"], "content": settings["log_content"]}
            self.engine.send({"type": "log", **told})

    def _leave(self, now: float) -> None:
        """Free the models' memory: the engine ends, and the next request brings another."""
        patience = 0.0  # one that loads does not listen
        if self.state == "ready":  # it may have a conversation to write
            patience = max(STOP_SECONDS, self.engine.load["settings"]["hang_seconds"])
        self.state, self.detail, self.progress, self.info = "unloaded", "unloading", 0.0, {}
        self.engine.restart_at, self.engine.crashes = None, 0  # what comes next is another try
        if self.engine.process is None:  # it had crashed and was to be started again
            self._gone()
            return
        self.engine.send({"type": "stop"})
        self._leaves_by = now + patience

    def _gone(self) -> None:
        self._leaves_by = inf
        self.lifetime.gone()
        self.detail = "the models are not in memory: a request or `draftd models load` brings them back"
        log.info("unloaded: %s", self.pair)

    def hear(self) -> None:
        for body in self.engine.receive():
            self._on_message(body)

    def _on_message(self, body: dict[str, Any]) -> None:
        match body["type"]:
            case "tokens" | "ended" | "done" | "error":
                if body["type"] == "tokens":
                    self.engine.progress()
                self.jobs.relay(body)
            case "cleared":
                self.clears.answered(body)
            case "prefilled":
                self.jobs.prefills.relay(body)
            case "learnt":
                self.learnt = body["report"]
            case "progress" | "ready" | "failed" if self._leaves_by < inf:
                pass  # said before it heard that it is to end: of no engine that is to come
            case "progress":
                self.progress = body["fraction"]
                self.detail = f"loading {self.progress:.0%}".replace("%", " %") + f" ({body['stage']})"
            case "ready":
                self.state, self.detail, self.progress, self.info = "ready", "ready", 1.0, body["info"]
                self.fall_back = None
                self.engine.load["settings"]["check_memory"] = False  # what has fitted is not refused later
                self.engine.load["ran"] = self.info.get("backend")
                self._was_ready = True
                self.engine.ready()
                self.lifetime.ready(time.monotonic())
                log.info("ready: %s", self.pair)
            case "failed":
                failure = from_code(body["code"], body["message"])
                if self.fall_back is not None:
                    self.fall_back(failure)
                    return
                if self._was_ready:  # a file is gone, or memory: the next request tries again
                    log.error("the models can't be loaded again: %s", failure.message)
                    self.lifetime.unload(time.monotonic())
                else:
                    self.failure = failure
                    self.clears.fail_all(failure)
                self.jobs.fail_all(failure)
                self.load_failed(failure)

    def died(self, *, stopping: bool) -> None:
        """The engine's process ended: its last words first, then plan the next one or give up."""
        self.hear()
        now = time.monotonic()
        if self.lifetime.next(now) == "stop":  # due, but it was faster: no crash, nothing to start again
            self._leave(now)
        self.poller.unregister(self.engine.socket)
        self.poller.unregister(self.engine.exit_fd)
        leaving = self.lifetime.stage is Stage.LEAVING
        how = self.engine.reap(crashed=not leaving)
        if leaving:
            self._gone()
            return
        self.lifetime.restarts()
        if stopping or self.failure is not None:
            return
        if self._leaves_by < inf:  # it was told to
            self._leaves_by, self.engine.crashes = inf, 0
            self.learnt = {}  # of its last words
            self.start()
            return
        self.jobs.blame(self.engine.aboard, how)
        self._ended(how)

    def _ended(self, how: str) -> None:
        """Say what became of the engine and what comes now."""
        self.jobs.counters.restarts["hang" if how.startswith("hung") else "crash"] += 1
        if self.engine.restart_at is None:
            times = len(BACKOFF) + 1
            if self.fall_back is not None:  # it never was ready with what a reload brought
                self.fall_back(EngineFailed(f"the engine {how}, {times} ends in a row"))
                return
            self.state = "failed"
            self.detail = f"the engine {how}, {times} ends in a row: see its log, then restart draftd"
            log.error("%s", self.detail)
            self.jobs.fail_all(EngineFailed(self.detail))
            return
        self.state, self.detail = "restarting", f"the engine {how} and is being restarted"
        log.warning("%s", self.detail)
