"""The engine as a child process: start it, talk to it, notice its end, and wait longer after each crash."""

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

STOP_SECONDS = 5.0  # an engine that was asked to stop may finish its round
UNKILLABLE_SECONDS = 10.0  # after SIGKILL; freeing a GPU takes a moment
BACKOFF = (0.1, 0.5, 2.0, 5.0)  # seconds before each restart in a row
HEALTHY_SECONDS = 60.0  # an engine that lived this long since it was ready has not crashed "in a row"


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
        self._ready_since: float | None = None

    def start(self) -> None:
        self._starts += 1
        self.restart_at = None
        self._ready_since = None
        path = Path(self._directory.name, f"engine-{self._starts}")
        self.socket = self._context.socket(zmq.PAIR)
        self.socket.set_hwm(0)  # back-pressure is per request, never here
        self.socket.linger = 0
        # The engine binds: only a connecting socket queues what is sent before its peer is there.
        self.socket.reconnect_ivl = 20  # ms
        self.socket.connect(f"ipc://{path}")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "draftd.daemon.worker", f"ipc://{path}"], stdin=subprocess.DEVNULL
        )
        self.exit_fd = os.pidfd_open(self.process.pid)
        self.send(self.load)

    def send(self, body: dict[str, Any]) -> None:
        if self.socket is not None:
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

    def reap(self) -> str:
        """After the child's end: free what it held, plan the restart, and say how it ended."""
        assert self.process is not None
        status = self.process.wait()
        self._release()
        if self._ready_since is not None and time.monotonic() - self._ready_since > HEALTHY_SECONDS:
            self.crashes = 0
        self.crashes += 1
        if self.crashes <= len(BACKOFF):
            self.restart_at = time.monotonic() + BACKOFF[self.crashes - 1]
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def stop(self) -> None:
        """End the child for good: ask, then terminate, then kill."""
        if self.process is not None:
            self.send({"type": "stop"})
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

    def _release(self) -> None:
        if self.socket is not None:
            self.socket.close()
        if self.exit_fd >= 0:
            os.close(self.exit_fd)
        self.socket, self.process, self.exit_fd, self.killed_at = None, None, -1, None
