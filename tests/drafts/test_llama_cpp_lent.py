"""The draft in llama.cpp whose target lends it what it would have to read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftd.drafts.llama_cpp import LlamaDraft
from tests.drafts.contexts import context, text
from tests.fakes import TableTarget


class Lending:
    """A target that holds so many tokens of each slot, and lends them where it is the same model."""

    def __init__(self, model: TableTarget, held: int) -> None:
        self.model, self.positions, self.able = model, held, True
        self.same = True
        self.lent: list[int] = []

    def held(self, slot: int) -> int:
        return self.positions if self.able else 0

    def lend(self, slot: int, tokens: Sequence[int]) -> int:
        self.able = self.same
        self.model.held[slot] = list(tokens) if self.same else list(tokens[:8])
        self.lent.append(len(self.model.held[slot]))
        return self.lent[-1]


def opened(held: int, size: int = 512) -> tuple[LlamaDraft, TableTarget, Lending]:
    model = TableTarget(vocab=8, context=size)
    lending = Lending(model, held)
    return LlamaDraft(model, lender=lending), model, lending


def few(length: int) -> list[int]:
    return [token % 8 for token in text(length)]


def test_only_the_newest_token_is_read() -> None:
    draft, model, lending = opened(held=99)
    tokens = few(100)
    assert draft.unseen(0, tokens) == 1
    (lent,) = draft.propose([context(tokens, limit=4)])
    assert lending.lent == [99]
    assert model.fed == 1 + 3

    alone = LlamaDraft(TableTarget(vocab=8, context=512))
    (read,) = alone.propose([context(tokens, limit=4)])
    assert lent.tokens == read.tokens


def test_what_the_target_does_not_hold_yet_is_read() -> None:
    draft, model, lending = opened(held=90)
    assert draft.unseen(0, few(100)) == 10
    draft.propose([context(few(100), limit=1)])
    assert lending.lent == [90]
    assert model.fed == 10


def test_what_the_draft_has_is_not_borrowed_again() -> None:
    draft, model, lending = opened(held=99)
    tokens = few(100)
    (made,) = draft.propose([context(tokens, limit=4)])
    lending.positions += 3
    draft.propose([context([*tokens, *made.tokens[:2], 7], limit=1)])
    assert lending.lent == [99]
    assert model.held[0] == [*tokens, *made.tokens[:2], 7]


def test_the_cheaper_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, model, lending = opened(held=99)
    tokens = few(100)
    draft.propose([context(tokens, limit=1)])
    for seconds, lent in ((1e-3, [99]), (1e-9, [99, 109])):  # a position, where a token is read in 10 ms
        monkeypatch.setattr(draft, "_lending", seconds)
        monkeypatch.setattr(draft, "_reading", 0.01)
        tokens += few(5)
        lending.positions = len(tokens) - 1
        draft.propose([context(tokens, limit=1)])
        assert lending.lent == lent
        assert model.held[0] == tokens


def test_nothing_is_read_ahead_that_can_be_borrowed() -> None:
    draft, model, lending = opened(held=0)
    draft.prepare(0, few(100))
    assert model.fed == 0
    lending.able = False
    draft.prepare(0, few(100))
    assert model.fed == 100


def test_a_target_that_turns_out_to_be_another_model_lends_nothing() -> None:
    draft, model, lending = opened(held=99)
    tokens = few(100)
    lending.same = False
    assert draft.same_model
    draft.propose([context(tokens, limit=1)])
    assert not draft.same_model
    assert model.fed == 92
    assert model.held[0] == tokens


def test_what_was_read_stays_where_nothing_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, model, lending = opened(held=4)
    monkeypatch.setattr(lending, "lend", lambda slot, tokens: 0)
    tokens = few(5)
    draft.propose([context(tokens, limit=1)])
    lending.positions = 6
    draft.propose([context([*tokens, 1, 2], limit=1)])
    assert model.fed == 7, "each token once"


def test_a_token_that_the_draft_lacks_is_lent_though_reading_were_cheaper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draft, _, lending = opened(held=99)
    tokens = few(100)
    draft.propose([context(tokens, limit=1)])
    monkeypatch.setattr(draft, "_lending", 1.0)  # a position
    monkeypatch.setattr(draft, "_reading", 1e-9)
    for more, lent, proposed in (([8], [99], 0), ([3, 5], [99, 102], 1), ([2], [99, 102], 1)):
        tokens += more
        lending.positions = len(tokens) - 1
        (made,) = draft.propose([context(tokens, limit=1)])
        assert lending.lent == lent
        assert len(made.tokens) == proposed, "nothing behind what it can't read"


def test_a_context_that_outgrows_the_drafts_own_is_read() -> None:
    draft, model, lending = opened(held=99, size=64)
    draft.propose([context(few(100), limit=1)])
    assert lending.lent == []
    assert model.held[0] == few(100)[-32:]
