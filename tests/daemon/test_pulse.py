"""What the front makes of the engine's page: work that takes long, engines that stand still, clocks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from draftd.daemon import pulse
from draftd.daemon.costs import Costs
from draftd.daemon.pulse import FORWARD, IDLE, LOADING, Pulse, Watch

SECONDS = 8.0


class Pair:
    """Both ends, and a clock that only the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("draftd.daemon.pulse.time.monotonic", lambda: self.now)
        self.watch = Watch(SECONDS)
        self.engine = Pulse(os.dup(self.watch.file), SECONDS)
        self.costs = Costs(level=1.0, slope=0.04)
        self.sent = 1

    def stuck_after(self, seconds: float, *, works: bool = False, patience: float = 1.0) -> bool:
        """Look every now and then for so long; did it ever count as stuck?"""
        end, worked = self.now + seconds, 0.0
        while self.now < end:
            self.now += self.watch.every
            worked += works
            if self.watch.stuck(self.watch.look(self.sent, worked), patience):
                return True
        return False


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    both = Pair(monkeypatch)
    yield both
    both.watch.close()


def test_a_step_that_does_not_end_is_stuck_and_one_that_moves_is_not(pair: Pair) -> None:
    pair.engine.beat(FORWARD)
    assert not pair.stuck_after(SECONDS - 1)
    pair.engine.beat(FORWARD)
    assert not pair.stuck_after(SECONDS - 1)
    assert pair.stuck_after(3)


def test_an_allowance_grows_with_the_work_and_with_what_it_was_measured_to_cost(pair: Pair) -> None:
    for _ in range(20):
        pair.costs.observe(1, 0.3)
        pair.costs.observe(17, 0.4)
    allowed = {}
    for rows in (1, 512, 40_000):
        pair.engine.step(FORWARD, rows, [7], pair.costs)
        allowed[rows] = pair.watch.read().allowed
        assert pair.watch.read().words == f"a pass of the target of {rows} rows"
        assert pair.watch.read().keys == (7,)
    assert SECONDS < allowed[1] < allowed[512] < allowed[40_000]
    assert allowed[512] > pulse.FACTOR * 0.4
    assert not pair.stuck_after(allowed[40_000] - 1)
    assert pair.stuck_after(3)


def test_an_idle_engine_is_not_stuck_until_it_leaves_a_message_unread(pair: Pair) -> None:
    pair.engine.beat(IDLE)
    assert not pair.stuck_after(10 * SECONDS)
    assert pair.watch.read().idle(pair.sent)
    pair.sent += 1
    assert not pair.stuck_after(SECONDS - 1)
    assert pair.stuck_after(2)
    pair.engine.read(1000, [1])
    assert not pair.stuck_after(SECONDS - 1)
    pair.engine.beat(IDLE)
    assert not pair.stuck_after(10 * SECONDS)


def test_a_long_message_may_take_long_to_read(pair: Pair) -> None:
    pair.engine.read(10_000_000, [1])
    assert not pair.stuck_after(10 * SECONDS)


def test_a_load_may_take_its_time_while_it_works_but_not_stand_still(pair: Pair) -> None:
    for stage in ("before its first beat", "loading"):
        if stage == "loading":
            pair.engine.beat(LOADING)
        assert not pair.stuck_after(20 * SECONDS, works=True)
        assert pair.stuck_after(SECONDS + 2)
    assert pair.stuck_after(pulse.LOAD_SECONDS + 2, works=True)


def test_a_stop_of_the_whole_machine_is_not_the_engines(pair: Pair) -> None:
    pair.engine.beat(FORWARD)
    assert not pair.stuck_after(2)
    pair.now += 3600.0
    assert not pair.stuck_after(2)


def test_after_each_crash_the_next_engine_is_given_twice_as_long(pair: Pair) -> None:
    pair.engine.beat(FORWARD)
    assert not pair.stuck_after(4 * SECONDS - 1, patience=4.0)
    assert pair.stuck_after(3, patience=4.0)


def test_more_requests_than_the_page_holds(pair: Pair) -> None:
    pair.engine.beat(FORWARD, keys=range(1000))
    assert pair.watch.read().keys == tuple(range(255))
