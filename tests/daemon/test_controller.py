"""The controller against a simulated daemon of known costs and acceptance: its promises one by one."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from draftd.daemon.averages import Averages
from draftd.daemon.control import WINDOW
from draftd.daemon.controller import Controller
from draftd.daemon.learnt import Learnt
from draftd.daemon.plan import Outcome
from tests.daemon.controllers import FLAT, REQUESTS, SKIP, STEEP, STEPPED, answers
from tests.daemon.simulator import (
    MACHINES,
    Weather,
    best_fixed,
    plain,
    policies,
    run,
    run_one,
    texts,
)

SLOW = "llama.cpp, shipped draft"
COARSE = policies(lengths=(2, 4, 8, 12, 20, 32), floors=(0.0, 0.4, 0.6, 0.8))


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


@pytest.mark.parametrize("machine", [FLAT, STEEP, STEPPED])
@pytest.mark.parametrize(
    ("whose", "slow", "requests"), [("target", 1, 2), ("target", 2, 2), ("draft", 2, 20)]
)
def test_passes_that_are_slow_at_first_do_not_end_drafting_for_good(
    machine: str, whose: str, slow: int, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process' first passes may take ten times as long as those that follow."""
    controller, left = Controller(("model",)), slow
    took, drafted = controller.took, controller.drafted

    def slowly(name: str, seconds: float) -> float:
        nonlocal left
        left -= name == whose
        return 10.0 * seconds if name == whose and left >= 0 else seconds

    def slowly_drafted(read: int, requests: int, steps: int, tokens: int, seconds: float) -> None:
        drafted(read, requests, steps, tokens, slowly("draft", seconds))

    monkeypatch.setattr(controller, "took", lambda rows, seconds: took(rows, slowly("target", seconds)))
    monkeypatch.setattr(controller, "drafted", slowly_drafted)
    spent = run(controller, MACHINES[machine], texts("math", requests), Weather(Random(7)))
    assert plain(MACHINES[machine], 1) / spent[-1] > 1.25


@pytest.mark.parametrize("longer", [False, True])
def test_a_long_prompt_is_read_for_answers_that_are_long_enough(longer: bool) -> None:
    machine, unseen = MACHINES[STEPPED], 400
    controller, tables = Controller(("model",)), machine.tables()
    for rows in (1, 4, 9) * 2:
        controller.took(rows, tables[0][rows])
    for fed in (1, 64) * 2:
        controller.draft.observe(fed, tables[1][fed])
    length = 400 if longer else 10
    begun = []
    for text in texts("math", 8, length=length):
        control, calm = controller.begin(), Weather(Random(7), noise=0.0)
        run_one(controller, control, tables, text, calm, length, limit=512, prompt=unseen)
        begun.append(control.rounds["model"] > 0)
    # What answers are like shows with the first.
    assert all(begun) if longer else not any(begun[1:])


@pytest.mark.parametrize("machine", ["transformers, shipped draft", FLAT])
def test_of_a_prompt_too_long_for_a_bet_only_the_end_is_read(machine: str) -> None:
    controller = Controller(("model",))
    run(controller, MACHINES[machine], texts("math", 4), Weather(Random(7)))
    controller.hope, controller.good = 1.0, 0.99
    for unseen, reading in ((80, None), (4000, WINDOW)):
        plan = controller.begin().plan(64, unseen=unseen)
        assert (plan.source, plan.reading) == ("model", reading)


def test_a_draft_that_would_read_a_window_only_is_expected_to_agree_less() -> None:
    controller, tables = Controller(("model",)), MACHINES[STEEP].tables()
    for rows in (1, 4, 9) * 2:
        controller.took(rows, tables[0][rows])
    for fed in (1, 64) * 2:
        controller.draft.observe(fed, tables[1][fed])
    controller.hope, controller.good = 1.0, 0.9
    near, far = (controller.begin().plan(64, unseen=unseen) for unseen in (WINDOW + 16, 4000))
    assert (near.source, near.reading) == ("model", None)  # half as much again is worth its price
    assert far.source == "none"


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


def test_the_report_names_sources_rates_and_costs() -> None:
    controller = Controller()
    run(controller, MACHINES[FLAT], answers("edit")[:2], Weather(Random(7), noise=0.05))
    report = controller.report()
    assert {line["source"] for line in report["acceptance"]} == {"suffix", "model"}
    assert all(0 <= line["rate"] <= 1 for line in report["acceptance"])
    assert 200 < report["target_ms"]["1"] < 400
    assert 10 < report["draft_ms"]["1"] < 25
    assert sum(report["choices"].values()) > 20
