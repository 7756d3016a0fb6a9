"""The draft by shared tokens, over a scripted draft and vocabularies of a few words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from draftd.drafts.base import Context
from draftd.drafts.by_tokens import TokenDraft
from tests.fakes import ScriptedDraft

Row = NDArray[np.float32]
# the draft's id of each of the target's tokens 0 … 4; the target's 2 is none of the draft's
TO_DRAFT = {0: 3, 1: 0, 3: 1, 4: 2}
WIDTH = 4  # of the draft's rows


class Table:
    def row(self, row: Row) -> Row:
        return np.array(
            [row[TO_DRAFT[token]] if token in TO_DRAFT else -1e9 for token in range(5)], np.float32
        )

    def draft_id(self, token: int) -> int | None:
        return TO_DRAFT.get(token)

    def draft_ids(self, tokens: Sequence[int]) -> list[int]:
        return [one for token in tokens for one in ([TO_DRAFT[token]] if token in TO_DRAFT else [1, 1])]


def scripted(*says: int) -> ScriptedDraft:
    return ScriptedDraft(WIDTH, *says)


def context(
    tokens: list[int],
    choose: Callable[[Row, int], tuple[int, float]] | None = None,
    limit: int = 4,
    proceed: Callable[[Sequence[float]], bool] = lambda _: True,
) -> Context:
    return Context(0, tokens, limit, choose or (lambda row, _: (int(row.argmax()), 0.5)), proceed)


def test_context_and_proposal_are_translated() -> None:
    draft = scripted(2, 0, 3)
    (proposal,) = TokenDraft(draft, Table()).propose([context([1, 2, 4])])
    assert draft.asked == [[0, 1, 1, 2]], "a token that the draft lacks is spelled"
    assert proposal.tokens == [4, 1, 0]
    assert proposal.confidence == [0.5] * 3
    assert draft.fed == [2, 0, 3]


def test_the_targets_own_rows_and_positions_choose() -> None:
    seen: list[tuple[int, list[float]]] = []

    def choose(row: Row, position: int) -> tuple[int, float]:
        seen.append((position, row.tolist()))
        return int(row.argmax()), 0.5

    TokenDraft(scripted(2, 0), Table()).propose([context([1, 2, 4], choose)])
    assert [position for position, _ in seen] == [3, 4], "positions of the target, not of the spelled context"
    assert seen[0][1] == [0.0, 0.0, np.float32(-1e9), 0.0, 5.0]


def test_a_token_that_the_draft_lacks_is_not_fed_to_it() -> None:
    draft = scripted(2, 0)
    (proposal,) = TokenDraft(draft, Table()).propose([context([1], lambda row, _: (2, 0.5))])
    assert proposal.tokens == [2]
    assert draft.fed == []


def test_limit_and_doubt_end_it() -> None:
    draft = TokenDraft(scripted(0, 0, 0, 0), Table())
    assert len(draft.propose([context([1], limit=2)])[0].tokens) == 2
    assert len(draft.propose([context([1], proceed=lambda confidences: len(confidences) < 3)])[0].tokens) == 3


def test_requests_are_kept_apart() -> None:
    draft = TokenDraft(scripted(2), Table())
    proposals = draft.propose([context([1]), context([3], lambda row, _: (0, 0.25))])
    assert [proposal.tokens for proposal in proposals] == [[4], [0]]


def test_it_is_the_same_model_where_its_draft_is() -> None:
    inner = scripted()
    assert not TokenDraft(inner, Table()).same_model
    inner.same_model = True
    assert TokenDraft(inner, Table()).same_model


@pytest.mark.parametrize(("lacked", "lacking"), [(5, False), (6, True), (60, True)])
def test_it_knows_whether_it_lacks_much_of_what_the_target_says(lacked: int, lacking: bool) -> None:
    draft = TokenDraft(scripted(0), Table())
    for turn in range(100):
        assert not draft.lacking
        draft.unseen(0, [1, 2 if turn < lacked else 1])
    assert draft.lacking is lacking
    for _ in range(100):
        draft.unseen(0, [2, 1])
    assert not draft.lacking, "of late"


def test_forget_copy_and_close_reach_the_draft() -> None:
    inner = scripted()
    draft = TokenDraft(inner, Table())
    draft.forget(2)
    draft.copy(0, 1, 5)
    draft.close()
    assert inner.copied == (0, 1, 5)
    assert inner.forgotten == [2]
    assert inner.closed
