"""How far the daemon's round trip is from the floor: a bare pyzmq ping-pong between two processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgpack
import zmq

from draftd.ipc.client import Client

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

    @property
    def ratio(self) -> float:
        return self.daemon_median / self.bare_median


def measure(endpoint: str, count: int) -> PingReport:
    """`count` round trips of each kind, in blocks that alternate."""
    with tempfile.TemporaryDirectory(prefix="draftd-") as directory:
        address = f"ipc://{directory}/p.sock"
        echo = subprocess.Popen([sys.executable, "-m", __name__, address], stdin=subprocess.DEVNULL)
        try:
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket, Client(endpoint) as client:
                socket.linger = 0
                socket.connect(address)
                bare, daemon = _alternate(lambda: _bare_ping(socket), client.ping, count)
        finally:
            echo.terminate()
            echo.wait()
    return report(daemon, bare)


def report(daemon: list[float], bare: list[float]) -> PingReport:
    return PingReport(len(daemon), statistics.median(daemon), p99(daemon), statistics.median(bare), p99(bare))


def p99(values: list[float]) -> float:
    """The smallest value that 99 in 100 do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 99 // 100) - 1)]


def _alternate(
    bare: Callable[[], float], daemon: Callable[[], float], count: int
) -> tuple[list[float], list[float]]:
    for _ in range(BLOCK):  # sockets connected, code paths warm
        bare()
        daemon()
    bares: list[float] = []
    daemons: list[float] = []
    while len(bares) < count:
        block = min(BLOCK, count - len(bares))
        bares += [bare() for _ in range(block)]
        daemons += [daemon() for _ in range(block)]
    return bares, daemons


def _bare_ping(socket: zmq.Socket[bytes]) -> float:
    start = time.perf_counter()
    socket.send(msgpack.packb(BODY))
    if not socket.poll(PATIENCE):
        raise TimeoutError(f"the bare ping-pong process did not answer within {PATIENCE // 1000} seconds")
    msgpack.unpackb(socket.recv())
    return time.perf_counter() - start


def _echo(address: str) -> None:
    """The other process: answers with what it got, decoded and encoded as a daemon would."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(address)
        while True:
            client, frame = socket.recv_multipart()
            socket.send_multipart([client, msgpack.packb(msgpack.unpackb(frame))])


if __name__ == "__main__":
    _echo(sys.argv[1])
