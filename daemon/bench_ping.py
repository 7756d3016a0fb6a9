"""How far the daemon's round trip is from the floor: bare ping-pongs, pyzmq's and a Unix socket's."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgpack
import zmq

from draftd.ipc.client import Client
from draftd.models.child import end_with

BLOCK = 100  # round trips of one kind before it is the other's turn: both meet the same machine
PATIENCE = 10_000  # milliseconds
BODY = {"type": "ping", "id": "1"}


@dataclass(frozen=True, slots=True)
class PingReport:
    """Round trips in seconds."""

    count: int
    daemon_median: float
    daemon_p99: float
    bare_median: float
    bare_p99: float
    unix_median: float
    unix_p99: float

    @property
    def ratio(self) -> float:
        return self.daemon_median / self.bare_median


def measure(endpoint: str, count: int) -> PingReport:
    """`count` round trips of each kind, in blocks that alternate."""
    with tempfile.TemporaryDirectory(prefix="draftd-") as directory, contextlib.ExitStack() as stack:
        address = f"ipc://{directory}/p.sock"
        path = f"{directory}/u.sock"
        for kind, where in (("zmq", address), ("unix", path)):
            stack.enter_context(_echoing(kind, where))
        socket = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.DEALER))
        socket.linger = 0
        socket.connect(address)
        plain = stack.enter_context(_connected(path))
        client = stack.enter_context(Client(endpoint))
        kinds = [client.ping, lambda: _bare_ping(socket), lambda: _unix_ping(plain)]
        return report(*_alternate(kinds, count))


def report(daemon: list[float], bare: list[float], unix: list[float]) -> PingReport:
    found = [figure for times in (daemon, bare, unix) for figure in (statistics.median(times), p99(times))]
    return PingReport(len(daemon), *found)


def p99(values: list[float]) -> float:
    """The smallest value that 99 in 100 do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]


def _alternate(kinds: Sequence[Callable[[], float]], count: int) -> list[list[float]]:
    for _ in range(BLOCK):  # sockets connected, code paths warm
        for ping in kinds:
            ping()
    times: list[list[float]] = [[] for _ in kinds]
    while len(times[0]) < count:
        block = min(BLOCK, count - len(times[0]))
        for ping, taken in zip(kinds, times, strict=True):
            taken += [ping() for _ in range(block)]
    return times


@contextlib.contextmanager
def _echoing(kind: str, address: str) -> Iterator[None]:
    """The other process."""
    command = [sys.executable, "-P", "-m", __name__, kind, address, str(os.getpid())]
    echo = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        echo.terminate()
        echo.wait()


@contextlib.contextmanager
def _connected(path: str) -> Iterator[sockets.socket]:
    """A stream to the Unix socket, once the other process listens there."""
    end = time.monotonic() + PATIENCE / 1000
    with sockets.socket(sockets.AF_UNIX) as plain:
        while True:
            try:
                plain.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        plain.settimeout(PATIENCE / 1000)
        yield plain


def _bare_ping(socket: zmq.Socket[bytes]) -> float:
    start = time.perf_counter()
    socket.send(msgpack.packb(BODY))
    if not socket.poll(PATIENCE):
        raise TimeoutError(f"the bare ping-pong process did not answer within {PATIENCE // 1000} seconds")
    msgpack.unpackb(socket.recv())
    return time.perf_counter() - start


def _unix_ping(plain: sockets.socket) -> float:
    start = time.perf_counter()
    plain.sendall(msgpack.packb(BODY))
    msgpack.unpackb(plain.recv(4096))
    return time.perf_counter() - start


def _echo(address: str) -> None:
    """Answers with what it got, decoded and encoded as a daemon would."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(address)
        while True:
            client, frame = socket.recv_multipart()
            socket.send_multipart([client, msgpack.packb(msgpack.unpackb(frame))])


def _echo_unix(path: str) -> None:
    """The same over a plain stream: a frame this small comes whole."""
    with sockets.socket(sockets.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        stream, _ = listening.accept()
        with stream:
            while frame := stream.recv(4096):
                stream.sendall(msgpack.packb(msgpack.unpackb(frame)))


if __name__ == "__main__":
    end_with(int(sys.argv[3]))
    {"zmq": _echo, "unix": _echo_unix}[sys.argv[1]](sys.argv[2])
