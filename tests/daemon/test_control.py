"""One request under the controller: its mode, what is learnt of it, and that nothing breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.daemon.calibration import CHOSEN
from draftd.daemon.control import Control, Mode
from draftd.daemon.controller import Controller
from draftd.daemon.learnt import Learnt
from draftd.daemon.plan import Outcome, Plan
from tests.daemon.controllers import FLAT, answers, taught
from tests.daemon.simulator import (
    MACHINES,
    Machine,
    Text,
    Weather,
    run_one,
)


def test_a_draft_that_is_taken_away_is_not_judged_for_that() -> None:
    controller = taught(False)
    controller.hope = 1.0
    control = controller.begin()
    control.plan(64)
    control.learn(Outcome([0.9], 1, 2, seconds=2.0, kept=1))
    controller.sources = frozenset({"suffix"})
    control.plan(64)
    assert controller.hope == 1.0


def drive(control: Control, machine: Machine, text: Text, length: int = 64) -> list[Plan]:
    """Runs a request and keeps its plans."""
    plans: list[Plan] = []

    class Watched(Control):
        def plan(self, *args: object, **more: object) -> Plan:
            plans.append(control.plan(*args, **more))  # type: ignore[arg-type]
            return plans[-1]

        def learn(self, outcome: Outcome) -> None:
            control.learn(outcome)

    watched = Watched(control.controller, control.mode, "greedy")
    run_one(control.controller, watched, machine.tables(), text, Weather(Random(3)), length)
    return plans


def test_off_never_drafts_and_leaves_the_rest_alone() -> None:
    controller = Controller()
    before = controller.learnt
    control = controller.begin("off")
    assert {plan.source for plan in drive(control, MACHINES[FLAT], answers("edit")[0])} == {"none"}
    assert control.rounds == {"none": 64}
    assert controller.learnt.averages == before.averages


@pytest.mark.parametrize(
    ("mode", "offered", "expected"),
    [
        (("model", 5), 3, ("model", 5, 0)),
        (("suffix", 5), 3, ("suffix", 3, 3)),
        (("suffix", 2), 3, ("suffix", 2, 2)),
        (("suffix", 5), 0, ("none", 0, 0)),
        (("chain", 5), 3, ("chain", 5, 3)),
        (("chain", 5), 0, ("model", 5, 0)),
        (("chain", 3), 7, ("suffix", 3, 3)),
        (("none", 3), 7, ("none", 0, 0)),
    ],
)
def test_a_fixed_mode_drafts_exactly_so(mode: Mode, offered: int, expected: tuple[str, int, int]) -> None:
    plan = Controller().begin(mode).plan(100, [0.0] * offered)
    assert (plan.source, plan.limit, plan.found) == expected
    for count in range(1, plan.limit):
        assert plan.proceed([0.0] * count)
    if plan.limit:
        assert not plan.proceed([1.0] * plan.limit)
    assert plan.keep([0.0] * plan.limit) == plan.limit


@pytest.mark.parametrize(
    ("mode", "confidence", "expected"), [("auto", 0.25, 4), ("auto", 0.99, 32), (("suffix", 32), 0.25, 32)]
)
def test_a_look_up_goes_as_far_as_there_is_hope(mode: Mode, confidence: float, expected: int) -> None:
    follows = Controller().begin(mode).follows()
    followed = [confidence]
    while follows(followed) and len(followed) < 32:
        followed.append(confidence)
    assert len(followed) == expected


def test_the_suffix_is_judged_by_what_it_offered_even_unused() -> None:
    controller = Controller(("suffix",))
    control = controller.begin()
    for _ in range(20):
        control.plan(100, [0.85, 0.85])
        control.learn(Outcome((), 0, 1, found_agreed=0, seconds=0.1))
    calibration = controller.calibrations["suffix", "greedy"]
    assert sum(calibration.tried) == 20
    assert control.plan(100, [0.85, 0.85]).source == "none" or calibration.rate(10) < 0.3


def test_greedy_sampled_and_rejection_requests_are_judged_apart() -> None:
    for liked in CHOSEN:
        controller = Controller()
        for chosen in CHOSEN:
            control = controller.begin(chosen=chosen)
            for _ in range(30):
                control.plan(100)
                agreed = int(chosen == liked)
                control.learn(Outcome([0.75], agreed, agreed + 1, 0, 0.1, kept=1))
        for chosen in CHOSEN:
            assert (controller.calibrations["model", chosen].rate(9) > 0.5) == (chosen == liked)


def test_a_round_without_a_plan_says_nothing_of_what_the_last_one_found() -> None:
    controller = Controller(("suffix",))
    control = controller.begin()
    control.plan(64, [0.99] * 4)
    control.learn(Outcome([0.99] * 4, 4, 5, 4, 0.1, kept=4))
    tried = list(controller.calibrations["suffix", "greedy"].tried)
    control.learn(Outcome([], 0, 1, seconds=0.1))
    assert controller.calibrations["suffix", "greedy"].tried == tried


def test_times_that_are_no_numbers_leave_no_trace() -> None:
    controller = Controller()
    control = controller.begin()
    control.plan(100)
    control.learn(Outcome([float("nan")], 0, 1, 0, float("nan")))
    assert controller.calibrations["model", "greedy"].tried[0] == 1  # no confidence counts as least
    assert all(isfinite(figure) for figures in controller.learnt.averages.values() for figure in figures)


anything = st.floats(allow_nan=True, allow_infinity=True)
outcomes = st.builds(
    Outcome,
    confidences=st.lists(anything, max_size=40),
    agreed=st.integers(-3, 50),
    emitted=st.integers(-3, 50),
    found_agreed=st.integers(-3, 50),
    seconds=anything,
)
modes = st.one_of(
    st.sampled_from(["auto", "auto", "off"]),
    st.tuples(st.sampled_from(["none", "suffix", "model", "chain"]), st.integers(0, 50)),
)
widths = st.lists(st.integers(1, 3000), max_size=4)
rounds = st.lists(
    st.tuples(st.integers(-1, 40), st.lists(anything, max_size=40), widths, outcomes, anything),
    max_size=12,
)


@settings(max_examples=150)
@given(modes, st.integers(0, 40), st.booleans(), rounds)
def test_no_outcome_breaks_it(
    mode: Mode,
    longest: int,
    even: bool,
    story: Sequence[tuple[int, list[float], list[int], Outcome, float]],
) -> None:
    controller = Controller(longest=longest, even=even)
    control = controller.begin(mode)
    for remaining, found, elsewhere, outcome, seconds in story:
        plan = control.plan(remaining, found, elsewhere)
        assert 0 <= plan.found <= plan.limit <= max(0, min(longest, remaining - 1))
        assert plan.found <= len(found)
        assert (plan.source == "none") == (plan.limit == 0)
        assert mode != "off" or plan.source == "none"
        drafted = list(outcome.confidences)
        assert isinstance(plan.proceed(drafted), bool)
        assert 0 <= plan.keep(drafted) <= min(plan.limit, len(drafted))
        assert not plan.proceed([0.99] * plan.limit)
        controller.took(1 + sum(elsewhere), seconds)
        controller.drafted(control.reading(plan), 1, 3, 3, seconds)
        control.learn(outcome)
    kept = controller.learnt
    assert Learnt.model_validate_json(kept.model_dump_json()) == kept
    assert Controller(learnt=kept).learnt.calibrations == kept.calibrations


def test_a_draft_that_saves_a_pass_beside_others_costs_none() -> None:
    """Two spans of unequal lengths are two passes; drafted nearly up to the other's length they are one."""
    controller = Controller(("model",), even=True)
    for rows in (1, 2, 4, 8, 16) * 2:
        controller.took(rows, 1.0)
    control = controller.begin()
    plan = control.plan(64, elsewhere=[5])
    assert control._pass(1, 1) == pytest.approx([2.0, 1.0])
    assert plan.source == "model"
    control.learn(Outcome([0.9], 1, 2, 0, 1.0, kept=1))
    assert controller.learnt.averages["modelled"][-1] == 0.0
