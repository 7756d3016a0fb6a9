from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from draftd.drafts.base import Choose, Context, common_prefix
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.models.base import Span
from draftd.models.llama_cpp import LlamaTarget
from tests.fakes import TableTarget
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

Row = NDArray[np.float32]
CONTEXT = 96


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_gguf(write_tiny(folder / "model"), folder / "model.gguf")


@pytest.fixture
def model(gguf: Path) -> Iterator[LlamaTarget]:
    model = LlamaTarget.load(gguf, slots=4, context=CONTEXT, threads=1)
    yield model
    model.close()


@pytest.fixture
def reference(gguf: Path) -> Iterator[Callable[[Sequence[int]], Row]]:
    """The last row of a fresh prefill, by a model of its own."""
    model = LlamaTarget.load(gguf, slots=1, context=CONTEXT, threads=1)

    def row(tokens: Sequence[int]) -> Row:
        model.truncate(0, 0)
        last: Row = model.forward([Span(0, 0, list(tokens), 1)])[0][0].copy()
        return last

    yield row
    model.close()


def greedy(row: Row, _: int) -> tuple[int, float]:
    weights = np.exp(row - row.max())
    return int(row.argmax()), float(weights.max() / weights.sum())


def context(
    tokens: Sequence[int],
    limit: int = 4,
    slot: int = 0,
    choose: Choose = greedy,
    proceed: Callable[[Sequence[float]], bool] = lambda _: True,
) -> Context:
    return Context(slot, tokens, limit, choose, proceed)


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


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
    assert draft.tokens_fed == model.fed == 5 + 3  # the last token drafted is not fed: nothing follows it

    tokens += [*proposal.tokens[:2], (proposal.tokens[2] + 1) % 8]  # two accepted, then another
    (proposal,) = draft.propose([context(tokens, limit=1)])
    assert draft.tokens_fed == 8 + 1

    tokens += [*proposal.tokens, 6]  # all accepted, and one more: neither was fed
    draft.propose([context(tokens, limit=1)])
    assert draft.tokens_fed == 9 + 2

    draft.propose([context(tokens, limit=1)])  # the very same again: the last token alone, for its row
    assert draft.tokens_fed == 11 + 1

    draft.forget(0)
    draft.propose([context(tokens, limit=1)])
    assert draft.tokens_fed == 12 + len(tokens)


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
    model: LlamaTarget, reference: Callable[[Sequence[int]], Row]
) -> None:
    draft = LlamaDraft(model)
    tokens = [*range(40), 5]
    draft.prepare(0, tokens[:30])
    draft.prepare(0, tokens[:40])
    draft.prepare(0, tokens[:40])
    assert (draft.tokens_fed, draft.unseen(0, tokens), draft.unseen(1, tokens)) == (40, 1, 41)
    draft.copy(0, 1, 35)
    assert draft.unseen(1, tokens) == 6
    for slot, fed in ((0, 1), (1, 6)):
        before = draft.tokens_fed
        (proposal,) = draft.propose([context(tokens, limit=1, slot=slot)])
        assert draft.tokens_fed - before == fed
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


def windowed(tokens: Sequence[int], reading: int | None, limit: int = 1, slot: int = 0) -> Context:
    return Context(slot, tokens, limit, greedy, lambda _: True, reading=reading)


def test_of_a_long_context_only_the_newest_tokens_are_read() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    tokens = [token % 8 for token in range(100)]
    (proposal,) = draft.propose([windowed(tokens, reading=10, limit=3)])
    assert (draft.tokens_fed, draft.unseen(0, tokens)) == (10 + 2, 0)
    assert model.held[0] == tokens[-10:] + proposal.tokens[:2]

    tokens += [*proposal.tokens[:1], 5]  # later rounds go on behind what was read
    draft.propose([windowed(tokens, reading=10)])
    assert draft.tokens_fed == 12 + 1
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
    assert draft.tokens_fed < 30 * 8
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


def test_what_outgrows_the_draft_s_own_context_is_not_read_ahead_again_and_again() -> None:
    draft = LlamaDraft(TableTarget(context=64))
    tokens = [token % 8 for token in range(400)]
    for length in range(32, 401, 32):
        draft.prepare(0, tokens[:length])
    assert draft.tokens_fed == 64
    assert len(draft.propose([windowed(tokens, None, limit=3)])[0].tokens) == 3
    assert draft.tokens_fed == 64 + 32 + 2


def test_however_windows_and_rollbacks_mix_the_cache_is_what_is_believed() -> None:
    model = TableTarget()
    draft = LlamaDraft(model)
    dice = random.Random(4)
    tokens = [dice.randrange(8) for _ in range(50)]
    for _ in range(400):
        reading = dice.choice([None, 1, 3, 12])
        before = draft.unseen(0, tokens)
        fed = draft.tokens_fed
        (proposal,) = draft.propose([windowed(tokens, reading, limit=1)])
        wanted = max(1, before if reading is None else min(before, reading))
        assert draft.tokens_fed - fed == wanted
        assert model.held[0][-wanted:] == tokens[-wanted:]
        assert proposal.tokens == [int(model.row(model.held[0]).argmax())]
        assert draft.unseen(0, tokens) == 0
        rest = iter(tokens)
        assert all(token in rest for token in model.held[0])  # some of the sequence, in its order
        if dice.random() < 0.3:
            tokens = tokens[: dice.randint(1, len(tokens))]
        tokens = [*tokens, *(dice.randrange(8) for _ in range(dice.choice([1, 2, 30])))][-200:]
