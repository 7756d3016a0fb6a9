"""sd_notify by hand: tell systemd when the daemon is bound, what it does, and that it gets on."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping

PATIENCE = 1  # seconds that word of a new state waits for a manager that is slow to read


class Notifier:
    """Datagrams to $NOTIFY_SOCKET; without one every call does nothing. See sd_notify(3)."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):  # Linux's abstract namespace is spelled with a zero byte
            address = "\0" + address[1:]
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", PATIENCE, 0))
        usec = environment.get("WATCHDOG_USEC", "") if self._socket is not None else ""
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.period = (
            int(usec) / 1e6 / 3 if usec.isdigit() and meant else None
        )  # seconds between signs of life
        self._fed = 0.0  # monotonic seconds
        self._status = ""

    def send(self, *lines: str, flags: int = 0) -> bool:
        """One datagram, and whether it was taken; a manager that does not read is no reason to stop serving.

        Its queue holds ten, and signs of life may fill it: a state that got lost there would be waited for.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), flags, self._address)
                return True
        return False

    def ready(self, *more: str) -> None:
        self.send("READY=1", *more)

    def reloading(self) -> None:
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self.send("STOPPING=1", "STATUS=stopping")

    def status(self, words: str) -> None:
        """What `systemctl status` shows; the same words again are not sent."""
        line = "STATUS=" + words.replace("\n", " ")
        if words != self._status and self.send(line, flags=socket.MSG_DONTWAIT):
            self._status = words  # else the next turn tries again: the last words would stand for hours

    def due(self, now: float) -> float | None:
        """Seconds until the watchdog wants a sign of life; None if it wants none."""
        return None if self.period is None else max(0.0, self._fed + self.period - now)

    def feed(self, now: float) -> None:
        """A sign of life, if one is due: the caller says so only while real work gets on."""
        if self.due(now) == 0.0:
            self._fed = now
            self.send("WATCHDOG=1", flags=socket.MSG_DONTWAIT)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
