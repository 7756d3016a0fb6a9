"""The controller against a simulated daemon of known costs and acceptance, and its promises one by one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.daemon.averages import Averages
from draftd.daemon.calibration import CHOSEN
from draftd.daemon.control import WINDOW, Control, Mode
from draftd.daemon.controller import Controller
from draftd.daemon.learnt import Learnt
from draftd.daemon.plan import Outcome, Plan
from tests.daemon.simulator import (
    MACHINES,
    Machine,
    Text,
    Weather,
    best_fixed,
    plain,
    policies,
    run,
    run_one,
    texts,
)

FLAT = "transformers, tuned draft"
STEEP = "llama.cpp, tuned draft"
STEPPED = "llama.cpp without AMX, tuned draft"
SLOW = "llama.cpp, shipped draft"
COARSE = policies(lengths=(2, 4, 8, 12, 20, 32), floors=(0.0, 0.4, 0.6, 0.8))
REQUESTS, SKIP = 6, 2


@cache
def answers(regime: str) -> list[Text]:
    return texts(regime, REQUESTS)


@cache
def best(machine: str, regime: str) -> float:
    return best_fixed(MACHINES[machine], answers(regime), COARSE, SKIP)[0]


@pytest.mark.parametrize("machine", [FLAT, STEEP, STEPPED])
@pytest.mark.parametrize(
    "regime", ["prose", "stem", "code", "math", "edit", "unpredictable", "code>prose", "code|prose"]
)
def test_settles_within_five_percent_of_the_best_fixed_policy(machine: str, regime: str) -> None:
    spent = run(Controller(), MACHINES[machine], answers(regime), Weather(Random(7)))
    assert best(machine, regime) / sum(spent[SKIP:]) >= 0.95


@pytest.mark.parametrize("machine", [STEEP, STEPPED, SLOW, "transformers, shipped draft"])
@pytest.mark.parametrize("regime", ["unpredictable", "deceptive"])
def test_loses_at_most_two_percent_where_no_draft_pays(machine: str, regime: str) -> None:
    spent = run(Controller(("model",)), MACHINES[machine], answers(regime), Weather(Random(7)))
    assert plain(MACHINES[machine], REQUESTS) / sum(spent) >= 0.98


@pytest.mark.parametrize("machine", [FLAT, STEEP])
def test_a_cold_start_drafts_sensibly_from_the_first_request(machine: str) -> None:
    spent = run(Controller(), MACHINES[machine], answers("code")[:1], Weather(Random(7)))
    alone = run(Controller(()), MACHINES[machine], answers("code")[:1], Weather(Random(7)))
    assert alone[0] / spent[0] >= (3.5 if machine == FLAT else 1.5)


@pytest.mark.parametrize("longer", [False, True])
def test_a_long_prompt_is_read_for_answers_that_are_long_enough(longer: bool) -> None:
    machine, unseen = MACHINES[STEPPED], 400
    controller, tables = Controller(("model",)), machine.tables()
    for rows in (1, 4, 9):
        controller.took(rows, tables[0][rows])
    for fed in (1, 64):
        controller.draft.observe(fed, tables[1][fed])
    length = 400 if longer else 10
    begun = []
    for text in texts("math", 8, length=length):
        control, calm = controller.begin(), Weather(Random(7), noise=0.0)
        run_one(controller, control, tables, text, calm, length, limit=512, prompt=unseen)
        begun.append(control.rounds["model"] > 0)
    # What answers are like shows with the first.
    assert all(begun) if longer else not any(begun[1:])


@pytest.mark.parametrize(("machine", "whole"), [(STEPPED, 30), (FLAT, 100)])
def test_of_a_prompt_too_long_for_a_bet_only_the_end_is_read(machine: str, whole: int) -> None:
    controller = Controller(("model",))
    run(controller, MACHINES[machine], texts("math", 4), Weather(Random(7)))
    controller.hope, controller.good = 1.0, 0.99
    for unseen, reading in ((whole, None), (4000, WINDOW)):
        plan = controller.begin().plan(64, unseen=unseen)
        assert (plan.source, plan.reading) == ("model", reading)


def test_a_draft_that_would_read_a_window_only_is_expected_to_agree_less() -> None:
    controller, tables = Controller(("model",)), MACHINES[STEEP].tables()
    for rows in (1, 4, 9):
        controller.took(rows, tables[0][rows])
    for fed in (1, 64):
        controller.draft.observe(fed, tables[1][fed])
    controller.hope, controller.good = 1.0, 0.9
    near, far = (controller.begin().plan(64, unseen=unseen) for unseen in (WINDOW + 16, 4000))
    assert (near.source, near.reading) == ("model", None)  # half as much again is worth its price
    assert far.source == "none"


def taught(even: bool) -> Controller:
    """A controller that has seen passes of 1 s and half a second a row."""
    controller = Controller(("model",), even=even)
    for rows in (1, 2, 4, 8, 16):
        controller.took(rows, 1.0 + 0.5 * rows)
    return controller


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


def test_what_others_add_to_a_round_is_not_held_against_a_draft_that_pays() -> None:
    controller = taught(False)
    control = controller.begin()
    for _ in range(8):
        plan = control.plan(64, elsewhere=[2, 2, 2], able=3, willing=3)
        assert plan.source == "model"
        control.learn(Outcome([0.95], 1, 2, seconds=controller.seconds([2, 2, 2, 2]), kept=1))
        controller.drafted(4, 4, 1, 4, 0.1)
    assert control._lost < 0.0


def test_a_draft_that_is_taken_away_is_not_judged_for_that() -> None:
    controller = taught(False)
    controller.hope = 1.0
    control = controller.begin()
    control.plan(64)
    control.learn(Outcome([0.9], 1, 2, seconds=2.0, kept=1))
    controller.sources = frozenset({"suffix"})
    control.plan(64)
    assert controller.hope == 1.0


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


def test_what_a_window_took_is_learnt_as_the_window_s_cost() -> None:
    controller = Controller(("model",))
    run(controller, MACHINES[FLAT], texts("math", 2), Weather(Random(7)))
    before = controller.draft.seconds(WINDOW)
    control = controller.begin()
    assert control.plan(64, unseen=4000).reading == WINDOW
    controller.drafted(WINDOW, 1, 1, 1, before)
    control.learn(Outcome([0.9], 1, 2, seconds=before + controller.target.seconds(2), kept=1))
    assert controller.draft.seconds(WINDOW) == pytest.approx(before)


@pytest.mark.parametrize("machine", [FLAT, STEEP])
def test_what_was_learnt_makes_the_next_start_good_at_once(machine: str) -> None:
    before = Controller()
    run(before, MACHINES[machine], texts("code|prose", 6, seed=2), Weather(Random(7)))
    kept = Learnt.model_validate_json(before.learnt.model_dump_json())
    assert Controller(learnt=kept).target.table(40) == pytest.approx(before.target.table(40), rel=0.05)
    assert Controller(learnt=kept).draft.seconds(1) == pytest.approx(before.draft.seconds(1))
    fresh = answers("code")[:4]
    fixed = best_fixed(MACHINES[machine], fresh, COARSE)[0]
    spent = 0.0
    for text in fresh:  # each the first request of a daemon
        after = Controller(learnt=kept)
        spent += run(after, MACHINES[machine], [text], Weather(Random(7)))[0]
    assert fixed / spent >= 0.95


@pytest.mark.parametrize("machine", [FLAT, STEEP])
def test_hiccups_do_not_throw_it_off(machine: str) -> None:
    spent = run(Controller(), MACHINES[machine], answers("code"), Weather(Random(7), hiccups=0.03))
    assert best(machine, "code") / sum(spent[SKIP:]) >= 0.93


def test_a_request_of_another_kind_does_not_spoil_the_next() -> None:
    """Drafting that stopped paying in one request is tried again in later ones."""
    machine = MACHINES[STEEP]
    spent = run(Controller(), machine, texts("unpredictable|code", 6), Weather(Random(7)))
    assert plain(machine, 3) / sum(spent[1::2]) >= 1.5


def test_a_model_that_did_not_pay_is_tried_again_while_the_request_goes_on() -> None:
    machine, length = MACHINES[FLAT], 600
    controller = Controller(("model",))
    run(controller, machine, texts("unpredictable", 3), Weather(Random(7)))
    (text,) = texts("unpredictable>code", 1, length=length)
    spent = run_one(controller, controller.begin(), machine.tables(), text, Weather(Random(7)), length)
    assert plain(machine, 1, length) / spent >= 1.4


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


def test_a_short_answer_that_the_target_is_unsure_of_never_pays_for_trying_the_draft() -> None:
    machine = MACHINES[STEPPED]
    short = texts("prose", 14, length=24)
    spent = run(Controller(("model",)), machine, short, Weather(Random(7)), 24)
    assert plain(machine, 14, 24) / sum(spent) >= 0.95


def test_how_sure_the_target_is_decides_whether_the_draft_begins() -> None:
    for sure, source in ((0.99, "model"), (0.2, "none")):
        controller = Controller(("model",))
        run(controller, MACHINES[STEPPED], texts("stem", 3), Weather(Random(7)))
        controller.hope, controller.purse, controller.modelled = 0.0, 0.0, Averages(0.98, 3)
        control = controller.begin()
        assert control.plan(200, signs=[sure], unseen=20).source == "none"  # one token says little
        assert control.plan(200, signs=[sure] * 30, unseen=20).source == source


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


def test_a_chain_tells_its_sources_apart() -> None:
    rates = ([0.9] * 14, [0.1] * 14)
    plan = Plan("chain", 8, found=2, price=1.0, rates=rates, ahead=0.9, steps=[0.5], rows=[0.0] * 9)
    assert plan.proceed([0.5, 0.5])  # 0.81: the suffix's
    assert not plan.proceed([0.5, 0.5, 0.5])  # 0.081: a token of the model
    assert not Plan("chain", 8, 0, 1.0, rates, 0.9, [0.5], [0.0] * 9).proceed([0.5, 0.5])


def test_only_tokens_worth_their_rows_are_kept() -> None:
    rates = ([0.5] * 14, [0.5] * 14)
    cheap = Plan("model", 8, 0, 1.0, rates, 0.9, [0.0], [0.0] * 9)
    dear = Plan("model", 8, 0, 1.0, rates, 0.9, [0.0], [0.2 * row for row in range(9)])
    step = Plan("model", 8, 0, 1.0, rates, 0.9, [0.0], [0.0, 0.7, 0.7, 0.7, 0.7, 2.0, 2.0, 2.0, 2.0])
    assert [plan.keep([0.5] * 8) for plan in (cheap, dear, step)] == [8, 2, 4]


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


def test_a_wide_pass_of_others_makes_long_drafts_dear() -> None:
    """On a steep machine rows that come on top of others' still cost their time, and no width is too much."""
    controller = Controller()
    run(controller, MACHINES[FLAT], answers("math")[:2], Weather(Random(7)))
    control = controller.begin()
    for elsewhere in (0, 3, 64, 512, 100_000):
        plan = control.plan(200, [0.9] * 40, elsewhere=[elsewhere] if elsewhere else [])
        assert plan.limit <= controller.longest


def test_the_report_names_sources_rates_and_costs() -> None:
    controller = Controller()
    run(controller, MACHINES[FLAT], answers("edit")[:2], Weather(Random(7), noise=0.05))
    report = controller.report()
    assert {line["source"] for line in report["acceptance"]} == {"suffix", "model"}
    assert all(0 <= line["rate"] <= 1 for line in report["acceptance"])
    assert 200 < report["target_ms"]["1"] < 400
    assert 10 < report["draft_ms"]["1"] < 25
    assert sum(report["choices"].values()) > 20


def test_a_round_beside_a_prompt_says_nothing_of_the_pace() -> None:
    controller = taught(False)
    control = controller.begin()
    for seconds, changed in ((float("nan"), False), (1.5, True)):
        before = list(controller.paces[False].sums)
        control.plan(64)
        control.learn(Outcome([], 0, 1, seconds=seconds))
        assert (controller.paces[False].sums != before) == changed


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
@given(modes, st.integers(0, 40), rounds)
def test_no_outcome_breaks_it(
    mode: Mode,
    longest: int,
    story: Sequence[tuple[int, list[float], list[int], Outcome, float]],
) -> None:
    controller = Controller(longest=longest)
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
