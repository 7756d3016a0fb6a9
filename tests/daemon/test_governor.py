"""The governor over simulated series of readings: a second is a step."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.daemon.governor import WORDS, Governor, Marks, Reading, Rung

MARKS = Marks(memory_stall=10.0, memory_available=5.0, temperature=90.0, battery=20.0, dwell=5.0)
CALM = Reading(memory_stall=0.0, memory_available=60.0, temperature=50.0, on_battery=False, battery=100.0)
SHORT_OF_MEMORY = Reading(memory_stall=40.0, memory_available=2.0)


def rungs(governor: Governor, readings: Iterable[Reading], start: float = 0.0) -> list[int]:
    return [int(governor.step(reading, start + second)) for second, reading in enumerate(readings)]


def test_lack_of_memory_leads_down_a_rung_a_dwell_and_up_again_more_slowly() -> None:
    governor = Governor(MARKS)
    down = rungs(governor, [SHORT_OF_MEMORY] * 40)
    assert [down.index(rung) for rung in range(6)] == [0, 5, 10, 15, 20, 25]
    assert down[-1] == Rung.UNLOAD
    assert governor.why == "tasks wait for memory 40 % of the time"
    up = rungs(governor, [CALM] * 120, start=40.0)
    assert [up.index(rung) for rung in range(4, -1, -1)] == [20, 40, 60, 80, 100]
    assert governor.why == ""


def test_a_reading_between_the_marks_holds_the_rung() -> None:
    governor = Governor(MARKS)
    rungs(governor, [Reading(memory_available=4.0)] * 8)
    assert governor.rung == Rung.SHORT_DRAFTS
    assert set(rungs(governor, [Reading(memory_available=6.0)] * 500, start=8.0)) == {1}
    assert governor.why == "6 % of the memory is available"
    assert rungs(governor, [Reading(memory_available=8.0)] * 30, start=508.0)[-1] == 0


def test_a_spike_shorter_than_the_dwell_does_nothing() -> None:
    governor = Governor(MARKS)
    assert set(rungs(governor, ([SHORT_OF_MEMORY] * 4 + [CALM]) * 20)) == {0}


def test_a_calm_moment_does_not_lead_up() -> None:
    governor = Governor(MARKS)
    rungs(governor, [SHORT_OF_MEMORY] * 30)
    assert set(rungs(governor, ([CALM] * 15 + [SHORT_OF_MEMORY]) * 10, start=30.0)) == {5}


def test_each_cause_leads_only_as_far_as_it_helps() -> None:
    deepest = {
        Reading(temperature=99.0): Rung.REFUSE,
        Reading(on_battery=True, battery=80.0): Rung.SHORT_DRAFTS,
        Reading(on_battery=True, battery=10.0): Rung.REFUSE,
        Reading(on_battery=False, battery=10.0): Rung.NORMAL,
        Reading(memory_available=1.0): Rung.UNLOAD,
        Reading(memory_stall=90.0): Rung.UNLOAD,
        Reading(memory_stall=90.0, memory_available=70.0): Rung.NORMAL,  # another's limit
        Reading(): Rung.NORMAL,
    }
    for reading, rung in deepest.items():
        assert max(rungs(Governor(MARKS), [reading] * 100)) == rung, reading


def test_whoever_is_refused_learns_when_that_may_end() -> None:
    governor = Governor(MARKS)
    assert governor.admits_in(0.0) == 0.0
    assert rungs(governor, [Reading(temperature=99.0)] * 30)[-1] == Rung.REFUSE
    assert governor.admits_in(30.0) == 20.0, "four dwells for a rung"
    assert rungs(governor, [SHORT_OF_MEMORY] * 30, start=30.0)[-1] == Rung.UNLOAD
    assert governor.admits_in(60.0) == 40.0, "two rungs"
    told = []
    for second in range(60, 140):
        governor.step(CALM, second)
        told.append(second + governor.admits_in(second))
        if governor.rung < Rung.REFUSE:
            break
    assert set(told) == {100.0}, "and so it comes"
    assert governor.rung == Rung.NO_DRAFT


def test_a_lesser_cause_catches_the_way_up_and_says_so() -> None:
    governor = Governor(MARKS)
    rungs(governor, [SHORT_OF_MEMORY] * 30)
    on_battery = Reading(memory_stall=0.0, memory_available=50.0, on_battery=True, battery=60.0)
    assert rungs(governor, [on_battery] * 300, start=30.0)[-1] == Rung.SHORT_DRAFTS
    assert governor.why == "on battery"


number = st.one_of(st.none(), st.floats(0, 100))
reading = st.builds(Reading, number, number, number, st.one_of(st.none(), st.booleans()), number)


@settings(max_examples=60)
@given(st.lists(reading, max_size=120))
def test_whatever_is_read_it_moves_by_one_rung_a_dwell_and_names_a_reason(series: list[Reading]) -> None:
    governor = Governor(MARKS)
    last, moved = Rung.NORMAL, 0.0
    for second, each in enumerate(series):
        rung = governor.step(each, float(second))
        if rung != last:
            assert abs(rung - last) == 1
            assert second - moved >= MARKS.dwell * (1 if rung > last else 4)
            last, moved = rung, float(second)
        assert bool(governor.why) == (rung > Rung.NORMAL)
        assert WORDS[rung]


def test_a_draft_that_just_does_not_fit_is_loaded_again_less_and_less_often() -> None:
    governor = Governor(MARKS)
    ups: list[int] = []
    for second in range(3600):
        before = governor.rung
        available = 4.0 if before < Rung.NO_DRAFT else 10.0  # percent
        if governor.step(Reading(memory_available=available), float(second)) < before:
            ups.append(second)
    gaps = [later - earlier for earlier, later in pairwise(ups)]
    assert gaps[:5] == [47, 87, 167, 327, 327], "the wait, and 7 seconds down again"
    assert rungs(governor, [CALM] * 2000, start=3600.0)[-1] == Rung.NORMAL
    rungs(governor, [SHORT_OF_MEMORY] * 8, start=5600.0)
    assert rungs(governor, [CALM] * 60, start=5608.0).index(Rung.NORMAL) == 20, "what held is no relapse"
