"""The front: binds the apps' socket, checks and routes their requests, and keeps the engine running.

It imports neither torch nor llama.cpp, so it answers half a second after its start and outlives the engine.
Here are its sockets, its turn and who handles which message; apps.py has the connections, jobs.py the
requests, delivery.py what is on its way out, admission.py and peers.py who may come in, expiry.py what ends
a request from outside, lifecycle.py the engine. All that waits for a moment is a timer.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import zmq

from draftd.daemon import logs
from draftd.daemon.admission import check_pair
from draftd.daemon.apps import Apps
from draftd.daemon.clears import Clears
from draftd.daemon.door import Door, all_descriptors
from draftd.daemon.expiry import Expiry
from draftd.daemon.gate import Gates
from draftd.daemon.governing import Governing
from draftd.daemon.jobs import Jobs
from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.lifetime import Lifetime
from draftd.daemon.loads import Loads
from draftd.daemon.notify import Notifier
from draftd.daemon.peers import Peers, group_id
from draftd.daemon.reload import Again, Reload, first_message
from draftd.daemon.settings import Settings
from draftd.daemon.supervisor import EngineProcess
from draftd.ipc import codec, endpoint, messages
from draftd.ipc.errors import (
    Cancelled,
    DraftdError,
    EngineFailed,
    InvalidConfig,
    MalformedFrame,
    UnsupportedVersion,
)
from draftd.ipc.parse import id_of, parse_client
from draftd.ipc.version import CAPABILITIES, VERSION, choose

log = logging.getLogger("draftd.front")

BURST = 256  # messages handled in a turn before the engine and the timers are looked at

Timer = Callable[[float], float | None]  # called every turn with monotonic seconds; when it must be next


class Front:
    """One daemon: a ROUTER towards the apps, a PAIR towards the engine, one thread."""

    def __init__(self, settings: Settings, address: str, again: Again | None = None) -> None:
        self.settings = settings
        self.address = address
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.poller = zmq.Poller()
        self.peers = Peers(settings, address)
        gates = Gates(self.poller)
        self.apps = Apps(self.context, self.peers, gates)
        self.engine = EngineProcess(self.context, first_message(settings))
        lifetime = Lifetime(settings.keep_alive)
        self.jobs = Jobs(settings, self.apps, lifetime, self.engine.send)
        self.clears = Clears(self.apps, settings.state_dir, self.engine.send)
        self.life = Lifecycle(self.engine, self.poller, self.jobs, self.clears, lifetime, settings.pair)
        self.governing = Governing(settings, self.life, self.engine.send)
        self.loads = Loads(self.apps, self.life, self._status)
        self.life.load_failed = self.loads.refuse
        self.expiry = Expiry(self.jobs, lambda: self.life.state == "ready")
        self.notifier = Notifier()
        self.reload = Reload(again or (lambda: settings), self.jobs, self.life, self._adopt)
        self.timers: list[Timer] = [
            gates.tick,
            self.governing.tick,
            self.loads.tick,
            self.life.tick,
            self.loads.tick,
            self.expiry.tick,
            self._sign_of_life,
        ]
        self.started = time.monotonic()
        self.stopping = False
        self.in_terminal = sys.stderr.isatty()  # when that is closed, SIGHUP means the end
        self.wake, self.waker = socket.socketpair()  # signals arrive here

    def run(self, hold: endpoint.Hold | None) -> None:
        """Serve until a signal says stop; DraftdError if the pair can't be loaded."""
        self.timers.append(Door(hold, lambda: self.apps.bind(self.address)).tick)
        self._catch_signals()
        log.info("listening at %s", self.address)
        self.notifier.ready()
        self.poller.register(self.apps.socket, zmq.POLLIN)
        self.poller.register(self.wake.fileno(), zmq.POLLIN)
        if self.peers.zap is not None:
            self.poller.register(self.peers.zap, zmq.POLLIN)
        self.life.lifetime.load(time.monotonic())
        try:
            while not self.stopping and self.life.failure is None:
                self._turn()
            self.notifier.stopping()
            self.jobs.fail_all(Cancelled("the daemon is stopping"))
            self.clears.fail_all(Cancelled("the daemon is stopping"))
            self.loads.fail_all(self.life.failure or Cancelled("the daemon is stopping"))
        finally:
            self.engine.stop()
            self.apps.close()
            self.peers.close()
            self.context.term()
            signal.set_wakeup_fd(-1)
            self.wake.close()
            self.waker.close()
            self.notifier.close()
        if self.life.failure is not None:
            raise self.life.failure

    def _turn(self) -> None:
        """Hear the apps, do what is due, wait for whatever comes first and handle it, unless it is an app."""
        self._hear_apps()  # before the timers: what the turn before did may have held the front up
        ready = dict(self.poller.poll(self._run_timers()))
        if self.peers.zap in ready:
            self.peers.answer_zap()
        if self.engine.socket in ready:
            self.life.hear()
        if self.engine.exit_fd in ready:
            self.life.died(stopping=self.stopping)
        if self.wake.fileno() in ready:
            self._on_signals(self.wake.recv(64))
        self.notifier.status(f"{self.life.detail}: {self.settings.pair}")

    def _run_timers(self) -> int | None:
        """Do what is due; the milliseconds until something will be."""
        now = time.monotonic()
        moments = [moment for timer in self.timers if (moment := timer(now)) is not None]
        return max(0, int((min(moments) - now) * 1000) + 1) if moments else None

    def _catch_signals(self) -> None:
        self.wake.setblocking(False)
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def _on_signals(self, numbers: bytes) -> None:
        hung_up = signal.SIGHUP in numbers and self.in_terminal and not sys.stderr.isatty()
        if signal.SIGHUP in numbers and not hung_up:
            self.notifier.reloading()
            self.reload.run(self.settings)
            self.notifier.ready()
        if hung_up or signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self.stopping = True

    def _sign_of_life(self, now: float) -> float | None:
        """Feed systemd's watchdog from this very loop, and only while the engine gets on or is dealt with."""
        due = self.notifier.due(now)
        if due == 0.0 and self.life.gets_on(now):
            self.notifier.feed(now)
        return None if due is None else now + (due or self.notifier.period or 0.0)

    def _adopt(self, settings: Settings) -> None:
        self.settings = self.jobs.settings = settings
        self.governing.adopt(settings)

    def _hear_apps(self) -> None:
        """Take what has come, a bounded number. The socket gives each peer its turn, so that every app of a
        few hundred is heard before a timer judges its silence, also after the front itself was held up.
        """
        for _ in range(BURST):
            received = self.apps.receive()
            if received is None:
                return
            self._on_frames(*received)

    def _on_frames(self, client: bytes, frames: list[zmq.Frame]) -> None:
        request_id = ""
        try:
            user = self.peers.check(client, frames[-1])
            if len(frames) != 1:
                raise MalformedFrame(f"a message is one frame, this one had {len(frames)}")
            body = codec.decode(frames[0].bytes)
            request_id = id_of(body)
            self._on_message(client, user, parse_client(body))
        except DraftdError as error:
            self.jobs.abandon(client, request_id, error)
        except Exception as error:  # a fault of ours must not end the requests of others
            self.jobs.abandon(client, request_id, logs.told(error))

    def _on_message(self, client: bytes, user: str, message: messages.ClientMessage) -> None:
        match message:
            case messages.Ping():
                self.apps.send(client, messages.Pong(id=message.id))
            case messages.Generate():
                self._check_open()
                self.jobs.open(client, message)
            case messages.Prefill():
                self._check_open()
                self.jobs.open_prefill(client, message)
            case messages.Load():
                check_pair(message.model, self.settings)
                self._check_open()
                self.loads.load(client, message)
            case messages.Unload():
                check_pair(message.model, self.settings)
                self.loads.unload(client, message)
            case messages.Cancel():
                job = self.jobs.by_client.get((client, message.id))
                if job is not None:
                    self.jobs.stop(job, "cancelled", answerable=self.life.state == "ready")
                else:
                    self.jobs.prefills.cancel(client, message.id)
            case messages.Credit():
                self.jobs.pay(client, message)
            case messages.Clear():
                self.clears.open(client, message)
            case messages.GetStatus():
                self.apps.reply(client, self._status(message))
            case messages.Hello():
                self._hello(client, user, message)

    def _check_open(self) -> None:
        """EngineFailed or Overloaded if nothing new can be taken on."""
        if self.life.state == "failed":
            raise EngineFailed(self.life.detail)
        self.governing.admit()

    def _hello(self, client: bytes, user: str, message: messages.Hello) -> None:
        chosen = choose(message.versions)
        if chosen is None:
            theirs = ", ".join(message.versions) or "none"
            raise UnsupportedVersion(
                f"this daemon speaks protocol {VERSION}, the app {theirs}: update the older one"
            )
        self.apps.greet(client, user, message, self.jobs.clients)
        welcome = messages.Welcome(
            id=message.id,
            version=chosen,
            daemon=version("draftd"),
            capabilities=list(CAPABILITIES),
            lease_ms=message.lease_ms,
        )
        self.apps.reply(client, welcome)

    def _status(self, asked: messages.GetStatus) -> messages.Status:
        full: dict[str, Any] = {}
        if asked.full:
            full = {
                "active": self.jobs.active(),
                "counters": self.jobs.counters.snapshot(),
                "limits": {"slots": self.settings.slots, "queue": self.settings.queue},
                "memory": self.engine.memory(),
            }
        return messages.Status(
            id=asked.id,
            **full,
            state=self.life.state,
            detail=self.life.detail,
            progress=self.life.progress,
            pair=self.settings.pair,
            engine=self.life.info,
            learnt=self.life.learnt,
            requests=self.jobs.counts(),
            governor=self.governing.report(),
            uptime_seconds=time.monotonic() - self.started,
        )


def serve(again: Again) -> None:
    """Run the daemon in this process until SIGTERM or SIGINT; DraftdError says why it can't.

    `again` gives the settings, now and at each SIGHUP.
    """
    settings = again()
    logs.guard()
    all_descriptors()
    logs.set_up(settings.log_level, settings.log_content)
    missing = [name for name in ("torch", "transformers", "llama_cpp") if find_spec(name) is None]
    if missing:
        raise InvalidConfig(f"serving needs {', '.join(missing)}: run `pip install 'draftd[engine]'`")
    address = endpoint.resolve(settings.endpoint)
    # A tcp endpoint's port is its lock, and keys are its guard.
    claim = nullcontext() if endpoint.is_tcp(address) else endpoint.prepare(address, group_id(settings.group))
    with claim as hold:
        try:
            Front(settings, address, again).run(hold)
        except DraftdError:
            raise
        except Exception as error:
            logs.crash(error)
            raise SystemExit(1) from None
