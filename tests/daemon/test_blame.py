"""Whose fault it is that a round failed: one request's, or nobody's where that is not plain."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftd.daemon.engine import Engine
from draftd.daemon.faults import Faults
from draftd.daemon.request import Request
from draftd.models.base import State
from draftd.models.processors import Penalties, Processors
from tests.daemon.test_beams import search
from tests.daemon.traffic import BACKGROUND, alone, prefill, request, run, text
from tests.fakes import TableTarget


class NoCopies(TableTarget):
    """Can't take over what was computed before."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        raise ZeroDivisionError

    def load_slot(self, slot: int, state: State, length: int) -> None:
        raise ZeroDivisionError


class Failing(Processors):
    def accept(self, tokens: Sequence[int]) -> None:
        raise ZeroDivisionError


def blamed(engine: Engine) -> Request | None:
    """Whose fault it is that the next round fails."""
    with pytest.raises(ZeroDivisionError) as error:
        engine.step()
    return Faults().blame(engine, error.value)


def give_up(engine: Engine, one: Request) -> None:
    engine.remove(one)
    engine.forget()
    assert one not in engine.scheduler.waiting + engine.scheduler.running


def test_a_request_that_gets_no_slot_is_given_up_and_those_that_run_go_on() -> None:
    engine = Engine(NoCopies(slots=2))
    first, second = request(0, text(40), 20), request(1, [*text(40), 1])
    engine.add(first)
    engine.step()
    engine.add(second)
    assert blamed(engine) is second
    give_up(engine, second)
    run(engine)
    assert first.tokens == alone(0, text(40), 20)
    assert len(engine.scheduler.places.free) == 2


def test_a_preempted_request_that_can_not_go_on_takes_nobodys_slot_along() -> None:
    engine = Engine(NoCopies(slots=2))
    short, yielding = request(0, text(20), 3), request(1, text(20, 1), 30, priority=BACKGROUND)
    engine.add(short)
    engine.add(yielding)
    engine.step()
    urgent = request(2, text(20, 2), 30)
    engine.add(urgent)
    engine.step()
    engine.step()
    assert engine.scheduler.running == [urgent]
    assert yielding.slot == urgent.slot, "where it was"
    assert blamed(engine) is yielding
    give_up(engine, yielding)
    run(engine)
    assert urgent.tokens == alone(2, text(20, 2), 30)
    assert len(engine.scheduler.places.free) == 2


def test_a_prefill_that_gets_no_slot_is_given_up_and_not_the_one_before_it() -> None:
    engine = Engine(NoCopies(slots=2, context=2000))
    begun = prefill(0, text(200))
    engine.add(begun)
    engine.step()
    later = prefill(1, text(200)[: begun.cached] + text(40, 1))
    engine.add(later)
    assert blamed(engine) is later
    give_up(engine, later)
    run(engine)
    assert begun.cached == 200


def test_a_round_of_several_is_nobodys_fault_even_if_all_but_one_have_ended_in_it() -> None:
    engine = Engine(TableTarget())
    engine.add(request(0, text(5), 1))
    engine.add(request(1, text(5, 1), processors=Failing(Penalties(), [])))
    assert blamed(engine) is None


def test_several_answers_of_one_request_are_one() -> None:
    engine = Engine(TableTarget())
    answers = [request(0, text(5, seed), processors=Failing(Penalties(), [])) for seed in range(2)]
    for each in answers:
        engine.add(each)
    assert blamed(engine) in answers


class OneCutFails(TableTarget):
    """Can't empty the second slot that it is asked to."""

    cuts = 0

    def truncate(self, slot: int, length: int) -> None:
        self.cuts += 1
        if self.cuts == 2:
            raise ZeroDivisionError
        super().truncate(slot, length)


def test_a_search_that_does_not_get_all_its_slots_gives_those_back_that_it_had() -> None:
    engine = Engine(OneCutFails())
    one = search(0, text(5), 4, 20, frozenset())
    engine.add(one)
    assert blamed(engine) is one
    give_up(engine, one)
    assert len(engine.scheduler.places.free) == 4
