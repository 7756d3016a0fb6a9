"""Who waits for whom at the listening socket: libzmq's own thread, and a front that sleeps or is held up."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import zmq

from draftd.daemon import gate
from draftd.daemon.door import all_descriptors
from draftd.daemon.gate import Gate, Gates
from tests.daemon.desk import desk

NOBODY = 65534
AHEAD = 1000  # connections that libzmq takes before the front has heard of the first


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    """Gates before a bound ROUTER, closed as the front closes them."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    all_descriptors()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    made = Gates(zmq.Poller())
    router.setsockopt(zmq.USE_FD, made.add(tmp_path / "d.sock", router))
    router.bind(f"ipc://{tmp_path}/d.sock")
    made.bound()
    yield made
    made.close()
    router.close(linger=0)
    context.term()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _knock(one: socket.socket, path: Path, seconds: float) -> bool:
    """Connect, or wait for a place among those that wait to be taken."""
    one.setblocking(False)
    end = time.monotonic() + seconds
    while True:
        try:
            one.connect(str(path))
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        else:
            return True


@pytest.mark.skipif(os.getuid() != 0, reason="every other test is run by an ordinary user then")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: a fork beside threads
def test_an_ordinary_user_can_listen() -> None:
    with tempfile.TemporaryDirectory(prefix="draftd-test-") as name:
        os.chown(name, NOBODY, NOBODY)
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                os.umask(0o177)  # as daemon/apps.py has it while it binds
                Gate(Path(name, "d.sock")).close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_open_gate_asks_for_no_look_and_who_says_nothing_wakes_the_front(
    gates: Gates, tmp_path: Path
) -> None:
    assert gates.tick(time.monotonic()) is None
    assert not gates._poller.poll(0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(tmp_path / "d.sock"))
        assert gates._poller.poll(10_000)
        assert gates.tick(time.monotonic()) is None
        assert not gates._poller.poll(0)


def _looks_at(file: int) -> bool:
    """Whether one of this process's epolls has the descriptor."""
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists them is gone
            if "eventpoll" in os.readlink(one):
                told = Path("/proc/self/fdinfo", one.name).read_text().split()
                if str(file) in [after for word, after in pairwise(told) if word == "tfd:"]:
                    return True
    return False


def test_libzmq_looks_at_a_gate_from_the_moment_that_it_is_bound(tmp_path: Path) -> None:
    """What its thread takes up while the gate is shut it does not find later, and ends the process."""
    for _ in range(50):
        with desk(tmp_path) as front:
            assert _looks_at(front.front.apps.gates._gates[-1].file)


@pytest.mark.parametrize("closing", [False, True])
def test_libzmq_gets_only_so_far_ahead_of_a_front_that_is_held_up(
    gates: Gates, tmp_path: Path, closing: bool
) -> None:
    many = AHEAD + gate.BACKLOG
    with ExitStack() as flood:
        came = 0
        for count in range(many + 100):
            one = flood.enter_context(socket.socket(socket.AF_UNIX))
            if not _knock(one, tmp_path / "d.sock", 0.3 if count >= many else 20.0):
                break
            came += 1
        assert many <= came < many + 10
        if not closing:  # the fixture does, which must not wait for libzmq, which waits
            gates.tick(time.monotonic())
            assert _knock(one, tmp_path / "d.sock", 20.0), "it waits no longer than the front does"
