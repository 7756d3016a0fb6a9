from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from draftd.daemon import drafting, engine
from draftd.daemon.controller import Controller
from draftd.daemon.places import Places
from draftd.drafts.base import Context, Proposal
from draftd.models.base import Span
from tests.bench.conftest import counted, nobody

Program = Callable[[str], ModuleType]


def context(tokens: list[int], limit: int, slot: int = 0) -> Context:
    return Context(slot, tokens, limit, lambda row, position: (0, 0.0), lambda confidences: True)


def test_a_replayed_pass_gives_the_recorded_rows_and_takes_the_places_time(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    target = replay.Replay([answer], clock, place)
    began = clock.offset
    (row,) = target.forward([Span(0, 0, [1, 2, 3], 1)])
    assert row.argmax(axis=1).tolist() == [4]
    assert clock.offset - began == pytest.approx(1020, abs=5)  # two rows beyond the first
    (rows,) = target.forward([Span(0, 3, [4, 5, 0], 3)])
    assert rows[:2].argmax(axis=1).tolist() == [5, 6], "the third is behind the recorded end"


def test_a_pass_over_several_slots_takes_one_time_and_gives_each_its_own_rows(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    rows = np.zeros((2, 9), np.float32)
    rows[[0, 1], [7, 8]] = 1.0
    target = replay.Replay([answer, replace(answer, prompt=[1, 2], rows=rows)], clock, place)
    assert target.slots == 2
    nothing, row = target.forward([Span(0, 0, [1, 2], 0), Span(1, 0, [1, 2], 1)])
    assert nothing.shape == (0, 9), "a piece of a prompt"
    assert row.argmax(axis=1).tolist() == [7]
    assert clock.offset == pytest.approx(1030, abs=5)  # three tokens beyond the first
    found = target.forward([Span(1, 2, [7], 1), Span(0, 2, [3], 1)])
    assert [each.argmax(axis=1).tolist() for each in found] == [[8], [4]]
    assert clock.offset == pytest.approx(1030 + 1010, abs=5)


def test_a_replayed_draft_chooses_as_recorded_and_takes_the_places_time(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    draft = replay.ReplayedDraft([answer], nobody, clock, place)
    (proposal,) = draft.propose([context([1, 2, 3, 4], 2)])
    assert (proposal.tokens, proposal.confidence) == ([5, 7], [0.9, 0.8])
    assert clock.offset == pytest.approx(230, abs=5)  # three tokens more were read
    assert draft.unseen(0, [1, 2, 3, 4, 5, 6]) == 1, "what was drafted last has not been read"
    before = clock.offset
    (proposal,) = draft.propose([context([1, 2, 3, 4, 5], 1)])
    assert proposal.tokens == [7]
    assert clock.offset - before == pytest.approx(100, abs=5)
    with pytest.raises(AssertionError, match="not recorded"):
        draft.propose([context([1, 2, 3, 4, 6], 1)])


def test_contexts_that_draft_together_share_each_pass_of_the_draft(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    draft = replay.ReplayedDraft([answer, answer], nobody, clock, place)
    one, other = draft.propose([context([1, 2, 3, 4], 2), context([1, 2, 3, 4], 1, slot=1)])
    assert (one.tokens, other.tokens) == ([5, 7], [5])
    assert clock.offset == pytest.approx(170 + 100, abs=5)  # eight tokens are read, then one drafts on alone
    assert [draft.unseen(slot, [1, 2, 3, 4, 5, 6]) for slot in (0, 1)] == [1, 2]
    before = clock.offset
    one, other = draft.propose([context([1, 2, 3, 4, 5], 2), context([1, 2, 3, 4, 5], 2, slot=1)])
    assert (one.tokens, other.tokens) == ([7, 8], [7, 8])
    assert clock.offset - before == pytest.approx(2 * 110, abs=5)


def test_a_replayed_draft_that_passes_over_a_part_reads_and_knows_the_rest(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    asked: list[list[int]] = []

    class Real:
        def propose(self, contexts: list[Context]) -> list[Proposal]:
            asked.append(list(contexts[0].tokens))
            return [Proposal([8], [0.5])]

    draft = replay.ReplayedDraft([answer], Real, clock, place)
    (proposal,) = draft.propose([replace(context([1, 2, 3, 4], 2), reading=2)])
    assert proposal.tokens == [8, 8]
    assert asked == [[3, 4], [3, 4, 8]]
    assert clock.offset == pytest.approx(210, abs=5)  # of three tokens more it read one
    draft.propose([context([1, 2, 3, 4, 5], 1)])
    assert asked[-1] == [3, 4, 5]
    assert set(answer.drafted) >= {((0, 2), (4,)), ((), (4,)), ((0, 2), (4, 5))}
    draft.forget(0)
    (proposal,) = draft.propose([context([1, 2, 3, 4, 5], 1)])
    assert proposal.tokens == [7], "all of it is read again"


def test_the_real_draft_is_asked_in_the_slot_of_the_answer(program: Program, answer: Any, place: Any) -> None:
    replay = program("replay")
    asked: list[int] = []

    class Real:
        def propose(self, contexts: list[Context]) -> list[Proposal]:
            asked.append(contexts[0].slot)
            return [Proposal([8], [0.5])]

    other = replace(answer, drafted={})
    draft = replay.ReplayedDraft([answer, other], Real, replay.Clock(), place)
    draft.propose([context([1, 2, 3, 4], 1), context([1, 2, 3, 4], 1, slot=1)])
    assert asked == [1], "the other's is recorded"
    assert other.drafted == {((), (4,)): (8, 0.5)}


def test_the_engine_reads_the_clock_only_meanwhile(program: Program) -> None:
    replay = program("replay")
    clock = replay.Clock()
    clock.set(1e9)
    with replay.told_by(clock):
        assert vars(engine)["time"].perf_counter() >= 1e9
        assert vars(drafting)["time"].perf_counter() >= 1e9
    assert vars(engine)["time"].perf_counter() < 1e9
    assert vars(drafting)["time"].perf_counter() < 1e9


@pytest.mark.parametrize("apps", [1, 3])
def test_answers_of_the_target_alone_share_each_pass(
    program: Program, answer: Any, place: Any, apps: int
) -> None:
    found = program("replay").streams(place, "off", [answer] * apps, nobody, Controller())
    assert len(found) == apps
    for each in found:
        assert each.first == pytest.approx(1000 + 10 * (3 * apps - 1), abs=5)  # all prompts in one pass
        assert each.gaps() == pytest.approx([1000 + 10 * (apps - 1)] * 2, abs=5)
        assert each.rest == pytest.approx(sum(each.gaps()))


@pytest.mark.parametrize("apps", [1, 2])
def test_drafted_answers_share_the_passes_of_both_models(
    program: Program, answer: Any, place: Any, apps: int
) -> None:
    found = program("replay").streams(place, ("model", 2), [answer] * apps, nobody, Controller())
    # One token is drafted behind the four that are there, which leaves the target two to check.
    drafting, checking = 100 + 10 * (4 * apps - 1), 1000 + 10 * (2 * apps - 1)
    for each in found:
        assert each.gaps() == pytest.approx([drafting + checking], abs=5)


def test_a_late_prompt_is_fed_in_pieces_beside_the_others(program: Program, place: Any) -> None:
    answers = [counted(program, 3, 12), counted(program, 100, 2)]
    early, late = program("replay").streams(place, "off", answers, nobody, Controller(), late=8)
    assert late.asked - early.asked == pytest.approx(1020 + 7 * 1000, abs=5)
    # 64 tokens of the prompt beside the other's one, then 36; then each one's, then the other's last.
    assert early.gaps(late.asked) == pytest.approx([1640, 1360, 1010, 1000], abs=5)
    assert late.first == pytest.approx(1640 + 1360, abs=5)


def test_a_late_one_comes_when_the_others_are_over(program: Program, place: Any) -> None:
    answers = [counted(program, 3, 2), counted(program, 5, 2)]
    early, late = program("replay").streams(place, "off", answers, nobody, Controller(), late=8)
    assert late.asked - early.asked == pytest.approx(1020 + 1000, abs=5)
    assert early.gaps(late.asked) == []


def test_an_answer_that_differs_from_the_recorded_one_ends_the_run(
    program: Program, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [counted(program, 3, 4), counted(program, 5, 4)]
    monkeypatch.setattr(Places, "_choose", lambda places, source, shared: max(places.free))
    with pytest.raises(SystemExit, match="the replayed answer of a differs from the recorded one"):
        program("replay").streams(place, "off", answers, nobody, Controller())
