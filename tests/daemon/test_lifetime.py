"""The engine's comings and goings, as a state machine against a simulated process and clock."""

from __future__ import annotations

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from draftd.daemon.lifetime import Lifetime, Stage

SECONDS = st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5, 3.0]))


class Machine(RuleBasedStateMachine):
    """A front: it does at once what `next` says, and the process takes its time to load and to end."""

    @initialize(keep_alive=st.sampled_from([-1.0, 0.0, 2.0]))
    def begin(self, keep_alive: float) -> None:
        self.now = 0.0
        self.life = Lifetime(keep_alive)
        self.process = "none"  # none, loading, ready, ending
        self.made = 0
        self.idle_since = 0.0  # since when no lease has been held
        self.stays = keep_alive  # what the last to go asked for
        self.own = False  # it gave a time of its own
        self.told = False

    def follow(self) -> None:
        match self.life.next(self.now):
            case "start":
                assert self.process == "none", "one process at a time"
                self.process = "loading"
            case "stop":
                assert self.process in ("loading", "ready")
                assert not self.life.leases, "the engine was taken from under a request"
                waited = self.now - self.idle_since
                assert self.told or (self.stays >= 0 and waited >= self.stays), "it left before its time"
                assert self.told or self.process == "ready", "a load is never cut short unasked"
                self.process, self.told = "ending", False
        assert self.life.next(self.now) is None, "it has made up its mind"

    @rule()
    def request(self) -> None:
        self.made += 1
        self.life.acquire(self.made)
        self.follow()

    @precondition(lambda self: self.life.leases)
    @rule(data=st.data(), keep_alive=SECONDS)
    def end_of_request(self, data: st.DataObject, keep_alive: float | None) -> None:
        lease = data.draw(st.sampled_from(sorted(self.life.leases)))
        self.life.release(lease, self.now, keep_alive)
        self.rest(keep_alive)
        self.follow()

    @rule(keep_alive=SECONDS)
    def load(self, keep_alive: float | None) -> None:
        self.life.load(self.now, keep_alive)
        self.rest(keep_alive)
        self.told = False
        self.follow()
        assert self.process != "none"

    @rule(keep_alive=st.sampled_from([-1.0, 0.0, 2.0, 7.0]))
    def adopt(self, keep_alive: float) -> None:
        if keep_alive != self.life.keep_alive and not self.own:
            self.stays, self.idle_since = keep_alive, self.now
        self.life.adopt(keep_alive, self.now)
        self.follow()

    @rule()
    def unload(self) -> None:
        self.life.unload(self.now)
        self.told = self.process in ("loading", "ready")
        self.follow()
        assert self.life.leases or self.process in ("none", "ending")

    @rule(seconds=st.sampled_from([0.125, 1.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        """The front sleeps until the time that it was told, and looks then."""
        end = self.now + seconds
        while (at := self.life.look_at()) <= end:
            self.now = max(self.now, at)
            self.follow()
        self.now = end
        self.follow()

    @precondition(lambda self: self.process == "loading")
    @rule()
    def loaded(self) -> None:
        self.process = "ready"
        self.life.ready(self.now)
        self.idle_since = self.now
        self.follow()

    @precondition(lambda self: self.process in ("loading", "ready"))
    @rule()
    def crash(self) -> None:
        self.process = "loading"  # the supervisor starts another
        self.life.restarts()

    @precondition(lambda self: self.process == "ending")
    @rule()
    def ended(self) -> None:
        self.process = "none"
        self.life.gone()
        self.follow()

    def rest(self, keep_alive: float | None) -> None:
        self.stays = self.life.keep_alive if keep_alive is None else keep_alive
        self.own = keep_alive is not None
        self.idle_since = self.now

    @invariant()
    def a_request_has_an_engine_or_one_that_comes(self) -> None:
        if self.life.leases:
            assert self.process != "none"
            assert self.life.stage is not Stage.OUT
            assert self.life.look_at() == inf

    @invariant()
    def the_timer_is_never_forgotten(self) -> None:
        if self.process == "ready" and not self.life.leases and self.stays >= 0:
            assert self.life.look_at() <= self.idle_since + self.stays


TestLifetime = Machine.TestCase
TestLifetime.settings = settings(max_examples=80, stateful_step_count=30)


def test_a_request_that_comes_while_the_engine_leaves_waits_for_the_next() -> None:
    life = Lifetime(0.0)
    life.acquire(1)
    assert life.next(0.0) == "start"
    life.ready(1.0)
    life.release(1, 2.0)
    assert life.next(2.0) == "stop"
    life.acquire(2)
    assert life.next(2.1) is None, "the old one must be gone first"
    life.gone()
    assert life.next(2.2) == "start"


def test_unload_waits_for_the_request_that_runs_and_load_takes_it_back() -> None:
    life = Lifetime(100.0)
    life.acquire(1)
    life.next(0.0)
    life.ready(1.0)
    life.unload(2.0)
    assert life.next(2.0) is None
    life.load(3.0)
    life.release(1, 4.0)
    assert life.next(50.0) is None
    life.acquire(2)
    life.unload(60.0)
    life.release(2, 61.0, keep_alive=-1.0)
    assert life.next(61.0) == "stop"


def test_another_keep_alive_counts_at_once_but_not_over_what_a_request_asked_for() -> None:
    life = Lifetime(-1.0)
    life.acquire(1)
    life.next(0.0)
    life.ready(1.0)
    life.release(1, 2.0)
    assert life.look_at() == inf
    life.adopt(10.0, 5.0)
    assert life.look_at() == 15.0
    life.adopt(10.0, 9.0)
    assert life.look_at() == 15.0, "another reload puts nothing off"
    life.acquire(2)
    life.release(2, 10.0, keep_alive=60.0)
    life.adopt(0.0, 11.0)
    assert life.look_at() == 70.0
    life.load(12.0)
    assert life.next(12.0) == "stop"
