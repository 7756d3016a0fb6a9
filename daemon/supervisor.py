"""The engine as a child process: start it, talk to it, notice its end or that it hangs, replace it.

After each crash in a row the next start waits longer; after the last of them it is for a person to look. An
engine that gave tokens has not crashed in a row: a request that goes on is worth a start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import psutil
import zmq

from draftd.daemon.pulse import LOADING, Watch

STOP_SECONDS = 5.0  # an engine that was asked to stop may finish its round
UNKILLABLE_SECONDS = 10.0  # after SIGKILL; freeing a GPU takes a moment
BACKOFF = (0.1, 0.5, 2.0, 5.0)  # seconds before each restart in a row
HEALTHY_SECONDS = 60.0  # an engine that lived this long since it was ready has not crashed "in a row"
KILL_SECONDS = 2.0  # from SIGABRT to SIGKILL for a hung engine: a stopped one hears nothing else


class EngineProcess:
    """One engine child after the other, each on a fresh socket so that a dead one's words never mix in."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], load: dict[str, Any]) -> None:
        self._context = context
        self._directory = tempfile.TemporaryDirectory(prefix="draftd-")  # mode 0700
        self.load = load  # the first message each engine gets
        self._starts = 0
        self.crashes = 0  # in a row
        self.restart_at: float | None = None  # monotonic seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: zmq.Socket[bytes] | None = None
        self.exit_fd = -1  # readable once the child has ended
        self.killed_at: float | None = None  # monotonic seconds: SIGKILL was sent, and it is still there
        self.aboard: tuple[int, ...] = ()  # keys of the requests at work when the last one ended
        self._ready_since: float | None = None
        self._watch: Watch | None = None
        self._sent = 0  # messages to this engine
        self._hung = ""  # why the engine is being ended
        self._kill_at: float | None = None  # monotonic seconds

    def start(self) -> str:
        """Start an engine; if the system can't (descriptors, memory) why not, and the next try is planned."""
        try:
            self._start()
        except (OSError, zmq.ZMQError) as error:
            self._release()
            self._plan()
            return f"could not be started ({os.strerror(error.errno or 0)})"
        return ""

    def _start(self) -> None:
        self._starts += 1
        self.restart_at = self._kill_at = self._ready_since = None
        self._hung, self._sent = "", 0
        if not _is_own(self._directory.name):  # what tidies /tmp takes one that no engine has used for days
            with contextlib.suppress(OSError):
                self._directory.cleanup()
            self._directory = tempfile.TemporaryDirectory(prefix="draftd-")
        path = Path(self._directory.name, f"engine-{self._starts}")
        self.socket = self._context.socket(zmq.PAIR)
        self.socket.set_hwm(0)  # back-pressure is per request, never here
        self.socket.linger = 0
        # The engine binds: only a connecting socket queues what is sent before its peer is there.
        self.socket.reconnect_ivl = 20  # ms
        self.socket.connect(f"ipc://{path}")
        self._watch = Watch(self.load["settings"]["hang_seconds"])
        page = self._watch.file
        # -P: a json.py where draftd was started is none of its modules
        command = [sys.executable, "-P", "-m", "draftd.daemon.worker"]
        self.process = subprocess.Popen(
            [*command, f"ipc://{path}", str(page), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(page,),
        )
        self.exit_fd = os.pidfd_open(self.process.pid)
        self.send(self.load)

    def send(self, body: dict[str, Any]) -> None:
        if self.socket is not None:
            self._sent += 1
            self.socket.send(msgpack.packb(body), zmq.NOBLOCK)

    def receive(self) -> list[dict[str, Any]]:
        """All that the engine has said so far."""
        bodies: list[dict[str, Any]] = []
        with contextlib.suppress(zmq.Again):
            while self.socket is not None:
                bodies.append(msgpack.unpackb(self.socket.recv(zmq.NOBLOCK)))
        return bodies

    def ready(self) -> None:
        self._ready_since = time.monotonic()

    def progress(self) -> None:
        """It gave tokens."""
        self.crashes = 0

    def next_look(self) -> float | None:
        """When to look, or to start, in monotonic seconds; None: an idle engine needs no looking at."""
        if self.process is None or self._watch is None:
            return self.restart_at
        if self._kill_at is not None:
            return self._kill_at
        return None if self._watch.read().idle(self._sent) else time.monotonic() + self._watch.every

    def look(self) -> None:
        """End an engine that hangs: by SIGABRT, at which it logs where it stands, then by SIGKILL."""
        if self.process is None or self._watch is None:
            return
        if self._kill_at is not None:
            if time.monotonic() >= self._kill_at:
                self.kill(time.monotonic())
                self._kill_at += KILL_SECONDS
            return
        if not self._watch.due():
            return
        # or a draft that the governor brings back
        loading = self._ready_since is None or self._watch.read().stage == LOADING
        reading = self._watch.look(self._sent, self._worked() if loading else 0.0)
        if self._watch.stuck(reading, 2.0**self.crashes):  # were it no hang, the next would come as far
            self._hung = f"hung ({reading.words} has not moved for {self._watch.still:.0f} s)"
            self.process.send_signal(signal.SIGABRT)
            self._kill_at = time.monotonic() + KILL_SECONDS

    def _worked(self) -> float:
        """Processor seconds of the engine and its children: a conversion runs in one."""
        assert self.process is not None
        total = 0.0
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    total += times.user + times.system + times.children_user + times.children_system
        return total

    def reap(self, *, crashed: bool = True) -> str:
        """After the child's end: free what it held, say how it ended, and plan the restart if it crashed."""
        assert self.process is not None
        status = self.process.wait()
        self.aboard = self._watch.read().keys if self._watch is not None else ()
        self._release()
        if self._ready_since is not None and time.monotonic() - self._ready_since > HEALTHY_SECONDS:
            self.crashes = 0
        if crashed:
            self._plan()
        if self._hung:
            return self._hung
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def stop(self) -> None:
        """End the child for good: ask, then terminate, then kill."""
        if self.process is not None:
            self.send({"type": "stop"})
            if self._ready_since is None:
                self.process.terminate()  # one that loads does not listen
            for escalate in (self.process.terminate, self.process.kill):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_SECONDS)
                    break
                escalate()
            self.process.wait()
            self._release()
        self._directory.cleanup()

    def kill(self, now: float) -> None:
        """SIGKILL, for one that did not end when it was asked to."""
        if self.process is not None:
            self.process.kill()
            self.killed_at = self.killed_at or now

    def unkillable(self, now: float) -> bool:
        """Whether the child survives SIGKILL: it is stuck in the kernel, and only a fresh start may help."""
        return self.killed_at is not None and now - self.killed_at > UNKILLABLE_SECONDS

    def memory(self) -> dict[str, int]:
        """Resident bytes of the front and of the engine, if there is one."""
        pids = {"front": os.getpid()} | ({"engine": self.process.pid} if self.process is not None else {})
        found = {}
        for name, pid in pids.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[name] = psutil.Process(pid).memory_info().rss
        return found

    def _plan(self) -> None:
        self.crashes += 1
        self.restart_at = None
        if self.crashes <= len(BACKOFF):
            self.restart_at = time.monotonic() + BACKOFF[self.crashes - 1]

    def _release(self) -> None:
        if self.process is not None and self.process.poll() is None:  # it started, and what follows did not
            self.process.kill()
            self.process.wait()
        if self.socket is not None:
            self.socket.close()
        if self.exit_fd >= 0:
            os.close(self.exit_fd)
        if self._watch is not None:
            self._watch.close()
        self.socket, self.process, self.exit_fd, self._watch = None, None, -1, None
        self.killed_at = None


def _is_own(directory: str) -> bool:
    """Is it there, and not one that somebody else has made in its place?"""
    try:
        return os.stat(directory).st_uid == os.geteuid()
    except OSError:
        return False
