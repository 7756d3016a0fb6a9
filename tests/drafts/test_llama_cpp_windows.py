"""Drafts for contexts of which only the newest tokens are read."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from draftd.drafts.base import Context
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.models.llama_cpp import LlamaTarget
from tests.drafts.contexts import Row, text, windowed
from tests.fakes import TableTarget


def test_of_a_long_context_only_the_newest_tokens_are_read() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    tokens = [token % 8 for token in range(100)]
    (proposal,) = draft.propose([windowed(tokens, reading=10, limit=3)])
    assert (model.fed, draft.unseen(0, tokens)) == (10 + 2, 0)
    assert model.held[0] == tokens[-10:] + proposal.tokens[:2]

    tokens += [*proposal.tokens[:1], 5]  # later rounds go on behind what was read
    draft.propose([windowed(tokens, reading=10)])
    assert model.fed == 12 + 1
    assert model.held[0] == tokens[-12:]

    tokens += [token % 8 for token in range(30)]
    draft.propose([windowed(tokens, reading=4)])  # a second stretch is left out
    assert model.held[0] == tokens[90:102] + tokens[-4:]
    draft.propose([windowed(tokens[:110], reading=None)])  # back into it: all from where it begins
    assert model.held[0] == tokens[90:110]
    draft.propose([windowed(tokens[:50], reading=None)])
    assert model.held[0] == tokens[:50]


def test_behind_a_window_the_model_says_what_it_says_of_those_tokens_alone(
    model: LlamaTarget, reference: Callable[[Sequence[int]], Row]
) -> None:
    draft = LlamaDraft(model)
    tokens = text(60)
    rows: list[Row] = []

    def watch(row: Row, _: int) -> tuple[int, float]:
        rows.append(row.copy())
        return int(row.argmax()), 1.0

    begin = len(tokens) - 20
    for _ in range(4):
        rows.clear()
        (proposal,) = draft.propose([Context(0, tokens, 3, watch, lambda _: True, reading=20)])
        for count, row in enumerate(rows):
            wanted = reference(tokens[begin:] + proposal.tokens[:count])
            np.testing.assert_allclose(row, wanted, atol=1e-3)
        tokens = [*tokens, *proposal.tokens[:2], 7]


def test_a_window_makes_room_for_contexts_longer_than_the_draft_s_own() -> None:
    model = TableTarget(context=16)
    draft = LlamaDraft(model)
    tokens = [token % 8 for token in range(40)]
    for _ in range(30):
        (proposal,) = draft.propose([windowed(tokens, None, limit=3)])
        assert len(proposal.tokens) == 3
        tokens += [*proposal.tokens[:2], 3]
    assert model.fed < 30 * 8
    assert [len(each.tokens) for each in draft.propose([windowed(tokens, 6, limit=9, slot=1)])] == [9]


def test_what_was_left_unread_is_copied_as_such_and_read_when_prepared() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    tokens = [token % 8 for token in range(60)]
    draft.propose([windowed(tokens, reading=10)])
    draft.copy(0, 1, 55)
    assert (model.held[1], draft.unseen(1, tokens)) == (tokens[50:55], 5)
    draft.copy(0, 2, 30)  # a part of which nothing was read
    assert (model.held[2], draft.unseen(2, tokens)) == ([], 60)
    draft.prepare(0, tokens)
    assert model.held[0] == tokens


def test_however_windows_and_rollbacks_mix_the_cache_is_what_is_believed() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    dice = random.Random(4)
    tokens = [dice.randrange(8) for _ in range(50)]
    for _ in range(400):
        reading = dice.choice([None, 1, 3, 12])
        before = draft.unseen(0, tokens)
        fed = model.fed
        (proposal,) = draft.propose([windowed(tokens, reading, limit=1)])
        wanted = max(1, before if reading is None else min(before, reading))
        assert model.fed - fed == wanted
        assert model.held[0][-wanted:] == tokens[-wanted:]
        assert proposal.tokens == [int(model.row(model.held[0]).argmax())]
        assert draft.unseen(0, tokens) == 0
        rest = iter(tokens)
        assert all(token in rest for token in model.held[0])  # some of the sequence, in its order
        if dice.random() < 0.3:
            tokens = tokens[: dice.randint(1, len(tokens))]
        tokens = [*tokens, *(dice.randrange(8) for _ in range(dice.choice([1, 2, 30])))][-200:]


def test_what_outgrows_the_draft_s_own_context_is_not_read_ahead_again_and_again() -> None:
    model = TableTarget(context=64)
    draft = LlamaDraft(model)
    tokens = [token % 8 for token in range(400)]
    for length in range(32, 401, 32):
        draft.prepare(0, tokens[:length])
    assert model.fed == 64
    assert len(draft.propose([windowed(tokens, None, limit=3)])[0].tokens) == 3
    assert model.fed == 64 + 32 + 2
