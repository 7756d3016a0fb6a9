"""Requests that run beside others: what a draft costs and is worth then, and what is learnt of it."""

from __future__ import annotations

from random import Random

import pytest

from draftd.daemon.controller import Controller
from draftd.daemon.plan import Outcome
from tests.daemon.controllers import FLAT, STEEP, answers, taught
from tests.daemon.simulator import (
    MACHINES,
    Weather,
    run,
)


@pytest.mark.parametrize("even", [False, True])
def test_where_longer_spans_take_a_pass_of_their_own_drafts_are_priced_so(even: bool) -> None:
    control = taught(even).begin()
    control.plan(64, elsewhere=[1, 1, 1, 1, 1])
    assert control._pass(2, 1) == pytest.approx([4.0, 4.0 + 1.5, 4.0 + 2.0] if even else [4.0, 4.5, 5.0])
    # Beside one that drafts three: as many more are filled up rather than given another pass.
    control.plan(64, elsewhere=[4])
    assert control._pass(3, 1)[::3] == pytest.approx([5.0, 5.0] if even else [3.5, 5.0])
    control.plan(64)  # alone there is but one span
    assert control._pass(2, 1)[:3] == pytest.approx([1.5, 2.0, 2.5])


def test_spans_of_many_lengths_take_a_pass_for_each_step_between_them() -> None:
    controller = taught(True)
    assert controller.seconds([1, 9, 5, 9]) == pytest.approx((1 + 2.0) + (1 + 6.0) + (1 + 4.0))
    assert controller.seconds([3, 4, 2]) == pytest.approx(1 + 6.0)  # filled up to four each
    assert taught(False).seconds([1, 9, 5, 9]) == pytest.approx(1 + 12.0)


def test_padded_spans_take_as_many_rows_as_the_longest_of_their_pass() -> None:
    controller = taught(padded=True)
    assert controller.seconds([1, 4, 2, 1]) == pytest.approx(1 + 0.5 * 16)
    assert controller.seconds([5]) == pytest.approx(1 + 0.5 * 5)
    assert controller.seconds([17, 1, 1, 1, 1]) == pytest.approx((1 + 0.5 * 17) + (1 + 0.5 * 4))  # two passes
    control = controller.begin()
    control.plan(64, elsewhere=[1, 4])
    assert control._pass(4, 1) == pytest.approx([7.0, 7.0, 7.0, 7.0, 8.5])  # up to the longest for nothing


def test_a_suffix_is_priced_as_if_others_had_found_none() -> None:
    """A row more is worth a likely token alone; beside three others that are padded for it, it is not."""
    found = [0.7]
    for others, used in ((0, 1), (3, 0)):
        controller = Controller(("suffix",), padded=True)
        for rows in (1, 2, 4, 8, 16) * 2:
            controller.took(rows, 1.0 + 0.1 * rows)
        control = controller.begin()
        plan = control.plan(64, found, elsewhere=[1] * others, able=others)
        assert plan.found == used


@pytest.mark.parametrize("even", [False, True])
def test_who_drafts_beside_others_that_do_takes_its_share(even: bool) -> None:
    controller = taught(even)
    control = controller.begin()
    control.plan(64, elsewhere=[1, 1])
    assert control._pass(2, 3) == pytest.approx([2.5 + each / 3 for each in (0.0, 1.5, 3.0)])
    whole = (0.0, 1.5, 3.0) if even else (0.0, 1.0, 2.0)  # filled up for the third, or without it
    assert control._pass(2, 2) == pytest.approx([2.5 + each / 2 for each in whole])
    control.plan(64, elsewhere=[64, 1])  # the first one is fed a prompt meanwhile
    base = controller.seconds([64, 1, 1])
    assert control._pass(1, 2) == pytest.approx([base, base + (controller.seconds([64, 2, 2]) - base) / 2])


def test_several_draft_where_one_alone_would_not() -> None:
    """A step of the draft takes what three tokens are worth beside three others, but all four share it."""
    found = {}
    for able, willing in ((0, 0), (3, 0), (3, 3)):
        controller = Controller(("model",))
        for _ in range(20):
            controller.took(1, 1.0)
            controller.took(4, 1.0)
            controller.drafted(1, 1, 4, 4, 4 * 0.5)
            controller.drafted(4, 4, 4, 16, 4 * 0.5)
        controller.hope, controller.good = 1.0, 0.9
        controller.modelled.add(3.0, 4.0, 0.0, weight=3.0)
        control = controller.begin()
        plan = control.plan(64, elsewhere=[1, 1, 1], able=able, willing=willing)
        found[able, willing] = plan.source, control.willing
    assert found == {(0, 0): ("none", False), (3, 0): ("none", True), (3, 3): ("model", True)}


def test_a_draft_that_is_timed_beside_others_is_known_there() -> None:
    """Nobody drafts one token alone there, so that is forgotten: no reason to draft at any price."""
    controller = Controller(("model",))
    for rows in (1, 2, 4, 8) * 2:
        controller.took(rows, 1.0)
    for _ in range(4):
        controller.drafted(4, 4, 4, 16, 4 * 10.0)
    controller.purse = -1.0  # nothing is probed
    assert not controller.draft.known(1)
    assert controller.begin().plan(64, elsewhere=[1, 1, 1], able=3, willing=3).source == "none"
    assert controller.begin().plan(64).source == "model", "alone it is looked at"


def test_what_others_add_to_a_round_is_not_held_against_a_draft_that_pays() -> None:
    controller = taught(False)
    control = controller.begin()
    for _ in range(8):
        plan = control.plan(64, elsewhere=[2, 2, 2], able=3, willing=3)
        assert plan.source == "model"
        control.learn(Outcome([0.95], 1, 2, seconds=controller.seconds([2, 2, 2, 2]), kept=1))
        controller.drafted(4, 4, 1, 4, 0.1)
    assert control._lost < 0.0


def test_requests_of_one_round_save_up_for_probing_once() -> None:
    saved = []
    for others in (0, 3):
        controller, target = Controller(("model",)), MACHINES[STEEP].tables()[0]
        for rows in (1, 4, 9):
            controller.took(rows, target[rows])
        control = controller.begin()
        control.plan(1, elsewhere=[1] * others)
        control.learn(Outcome([], 0, 1, seconds=(target[1] + target[4]) / 2))
        saved.append(controller.purse)
    assert saved[0] == pytest.approx(4 * saved[1])


def test_a_wide_pass_of_others_makes_long_drafts_dear() -> None:
    """On a steep machine rows that come on top of others' still cost their time, and no width is too much."""
    controller = Controller()
    run(controller, MACHINES[FLAT], answers("math")[:2], Weather(Random(7)))
    control = controller.begin()
    for elsewhere in (0, 3, 64, 512, 100_000):
        plan = control.plan(200, [0.9] * 40, elsewhere=[elsewhere] if elsewhere else [])
        assert plan.limit <= controller.longest


def test_a_round_beside_a_prompt_says_nothing_of_the_pace() -> None:
    controller = taught(False)
    control = controller.begin()
    for seconds, changed in ((float("nan"), False), (1.5, True)):
        before = list(controller.paces[False].sums)
        control.plan(64)
        control.learn(Outcome([], 0, 1, seconds=seconds))
        assert (controller.paces[False].sums != before) == changed
