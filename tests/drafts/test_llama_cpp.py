"""The draft in llama.cpp: rolled back, shared, ended in time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from draftd.drafts.base import common_prefix
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.models.base import Rows, Span
from draftd.models.llama_cpp import LlamaTarget
from tests.drafts.contexts import Row, context, text
from tests.fakes import TableTarget


def test_every_row_equals_a_fresh_prefill_after_any_rollback(
    model: LlamaTarget, reference: Callable[[Sequence[int]], Row]
) -> None:
    draft = LlamaDraft(model)
    dice = random.Random(2)
    tokens = text(5)
    rows: list[tuple[int, Row]] = []

    def watch(row: Row, position: int) -> tuple[int, float]:
        rows.append((position, row.copy()))
        return int(row.argmax()), 1.0

    for step in range(40):
        if step % 13 == 12:  # another conversation takes the slot
            tokens = text(7, step)
        rows.clear()
        (proposal,) = draft.propose([context(tokens, limit=dice.randint(0, 5), choose=watch)])
        assert [position for position, _ in rows] == list(
            range(len(tokens), len(tokens) + len(proposal.tokens))
        )
        for count, (_, row) in enumerate(rows):
            wanted = reference(tokens + proposal.tokens[:count])
            np.testing.assert_allclose(row, wanted, atol=1e-3, err_msg=f"step {step}, token {count}")
        accepted = dice.randint(0, len(proposal.tokens))  # none, some, or all; then the target's own token
        tokens = [*tokens, *proposal.tokens[:accepted], dice.randrange(256)]


def test_only_what_was_not_seen_is_fed() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    tokens = [1, 2, 3, 4, 5]
    (proposal,) = draft.propose([context(tokens, limit=4)])
    assert model.fed == 5 + 3  # the last token drafted is not fed: nothing follows it

    tokens += [*proposal.tokens[:2], (proposal.tokens[2] + 1) % 8]  # two accepted, then another
    (proposal,) = draft.propose([context(tokens, limit=1)])
    assert model.fed == 8 + 1

    tokens += [*proposal.tokens, 6]  # all accepted, and one more: neither was fed
    draft.propose([context(tokens, limit=1)])
    assert model.fed == 9 + 2

    draft.propose([context(tokens, limit=1)])  # the very same again: the last token alone, for its row
    assert model.fed == 11 + 1

    draft.forget(0)
    draft.propose([context(tokens, limit=1)])
    assert model.fed == 12 + len(tokens)


def test_a_context_that_drafts_nothing_costs_nothing() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    idle, busy = draft.propose([context([1, 2], limit=0), context([3, 4], limit=2, slot=1)])
    assert (idle.tokens, len(busy.tokens)) == ([], 2)
    assert model.held[0] == []
    assert model.widest == 1


def test_a_round_shares_its_passes() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    proposals = draft.propose([context([1, 2, 3], limit, slot) for slot, limit in enumerate([1, 4, 2])])
    assert [len(proposal.tokens) for proposal in proposals] == [1, 4, 2]
    assert (model.passes, model.widest) == (4, 3)


def test_several_contexts_equal_each_alone(model: LlamaTarget) -> None:
    contexts = [context(text(5 + 9 * slot, slot), 3 + slot, slot) for slot in range(4)]
    together = LlamaDraft(model).propose(contexts)
    for slot in range(4):
        model.truncate(slot, 0)
    alone = LlamaDraft(model)
    for one, proposal in zip(contexts, together, strict=True):
        (wanted,) = alone.propose([one])
        assert proposal.tokens == wanted.tokens
        np.testing.assert_allclose(proposal.confidence, wanted.confidence, rtol=1e-3)


def test_the_draft_is_what_the_model_would_say(
    model: LlamaTarget, reference: Callable[[Sequence[int]], Row]
) -> None:
    tokens = text(10)
    (proposal,) = LlamaDraft(model).propose([context(tokens, limit=6)])
    for count, token in enumerate(proposal.tokens):
        assert token == reference(tokens + proposal.tokens[:count]).argmax()


def test_drafting_ends_with_the_token_that_may_not_proceed() -> None:
    model = TableTarget()
    asked: list[list[float]] = []

    def proceed(confidences: Sequence[float]) -> bool:
        asked.append(list(confidences))
        return len(confidences) < 3

    (proposal,) = LlamaDraft(model).propose([context([1, 2], limit=8, proceed=proceed)])
    assert len(proposal.tokens) == len(proposal.confidence) == 3
    assert [len(confidences) for confidences in asked] == [1, 2, 3]
    assert asked[-1] == proposal.confidence


def test_drafting_ends_at_the_draft_s_own_context() -> None:
    draft = LlamaDraft(TableTarget(context=8))
    (proposal,) = draft.propose([context([1, 2, 3, 4, 5], limit=20)])
    assert len(proposal.tokens) == 4  # positions 5, 6, 7, and the one after the last
    (full,) = draft.propose([context([1, 2, 3, 4, 5, 6, 7, 0], limit=20)])
    assert len(full.tokens) == 1
    (beyond,) = draft.propose([context([1] * 9, limit=20)])  # begins anew with the newest half
    assert len(beyond.tokens) == 5


def test_a_token_that_the_draft_does_not_have() -> None:
    model = TableTarget(vocab=8)
    draft = LlamaDraft(model)
    (proposal,) = draft.propose([context([1, 8, 2], limit=3)])
    assert proposal.tokens == []
    (proposal,) = draft.propose([context([1, 2], limit=3)])
    assert len(proposal.tokens) == 3


def test_a_sequence_of_which_a_translation_leaves_nothing() -> None:
    """As of ids beyond the target's vocabulary: they have no text (models/translation.py)."""
    draft = LlamaDraft(TableTarget(vocab=8))
    nothing, some = draft.propose([context([], limit=3), context([1, 2], limit=3, slot=1)])
    assert nothing.tokens == []
    assert len(some.tokens) == 3


def test_ids_beyond_those_shared_are_never_proposed() -> None:
    seen = set()

    def choose(row: Row, _: int) -> tuple[int, float]:
        seen.add(len(row))
        return int(row.argmax()), 1.0

    LlamaDraft(TableTarget(vocab=8), shared=5).propose([context([1, 2], limit=3, choose=choose)])
    assert seen == {5}


def test_common_prefix() -> None:
    dice = random.Random(3)
    for _ in range(300):
        one = text(dice.randint(0, 40), 5)
        other = list(one[: dice.randint(0, 40)]) + text(dice.randint(0, 9), dice.randrange(99))
        wanted = 0
        while wanted < min(len(one), len(other)) and one[wanted] == other[wanted]:
            wanted += 1
        assert common_prefix(one, other) == wanted


def test_what_was_prepared_or_copied_is_not_fed_again(
    model: LlamaTarget, reference: Callable[[Sequence[int]], Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, passes = model.forward, list[int]()  # tokens of each

    def counted(spans: Sequence[Span]) -> list[Rows]:
        passes.append(sum(len(span.tokens) for span in spans))
        return forward(spans)

    monkeypatch.setattr(model, "forward", counted)
    draft = LlamaDraft(model)
    tokens = [*range(40), 5]
    draft.prepare(0, tokens[:30])
    draft.prepare(0, tokens[:40])
    draft.prepare(0, tokens[:40])
    assert (sum(passes), draft.unseen(0, tokens), draft.unseen(1, tokens)) == (40, 1, 41)
    draft.copy(0, 1, 35)
    assert draft.unseen(1, tokens) == 6
    for slot, fed in ((0, 1), (1, 6)):
        passes.clear()
        (proposal,) = draft.propose([context(tokens, limit=1, slot=slot)])
        assert sum(passes) == fed
        assert proposal.tokens == [int(reference(tokens).argmax())]
    draft.copy(3, 1, 10)  # nothing to copy leaves what was there
    assert draft.unseen(1, tokens) == 0


def test_slots_that_change_places_take_what_is_cached_with_them(
    model: LlamaTarget, reference: Callable[[Sequence[int]], Row]
) -> None:
    draft, one, other = LlamaDraft(model), text(40), text(25, 3)
    for slot, tokens in ((0, one), (1, other)):
        draft.prepare(slot, tokens)
    draft.swap(0, 1)
    assert [draft.unseen(slot, tokens) for slot, tokens in ((1, one), (0, other))] == [0, 0]
    for slot, tokens in ((1, one), (0, other)):
        (proposal,) = draft.propose([context([*tokens, 5], limit=1, slot=slot)])
        assert proposal.tokens == [int(reference([*tokens, 5]).argmax())]
    draft.swap(0, 2)  # with an empty one
    assert (draft.unseen(2, other), draft.unseen(0, other)) == (0, 25)
