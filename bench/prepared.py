"""A target and a draft for bench/hot_loop.py that only hand out prepared logits of a wide vocabulary.

By the clock that the engine reads meanwhile their passes take a place's time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from places import Place
from replay import Clock
from stateless import Stateless

from draftd.drafts.base import Context, Proposal
from draftd.models.base import Rows, Span

PEAK = 14.0  # the wanted token's logit
WRONG = 7  # every so manieth of the draft's tokens is not the target's


class Prepared(Stateless):
    """models/base.py's Target: the row at a position has its peak at the text's next token."""

    slots = 1

    def __init__(self, rows: Rows, text: Sequence[int], clock: Clock, place: Place) -> None:
        self.rows, self.text = rows, np.array(text)  # [at least as many as a pass checks, vocab]
        self.clock, self.place = clock, place
        self.vocab, self.context = rows.shape[1], len(text)

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        (span,) = spans
        began = self.clock.perf_counter()
        rows = self.rows[: span.rows]
        first = span.start + len(span.tokens) - span.rows + 1
        for index, row in enumerate(rows):
            row[self.text] = 0.0
            row[self.text[first + index]] = PEAK
        more = len(span.tokens) - 1
        self.clock.set(began + (self.place.pass_ms + self.place.row_ms * more) / 1000)
        return [rows]


class PreparedDraft(Stateless):
    """drafts/base.py's Draft: one such row for each token, now and then with another peak."""

    same_model = False

    def __init__(self, row: Rows, text: Sequence[int], clock: Clock, place: Place) -> None:
        self.row, self.text = row[0], np.array(text)  # [vocab]
        self.clock, self.place = clock, place

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        (context,) = contexts
        proposal = Proposal(drawn=True)
        while len(proposal.tokens) < context.limit:
            position = len(context.tokens) + len(proposal.tokens)
            began = self.clock.perf_counter()
            self.row[self.text] = self.row[-1] = 0.0
            self.row[self.text[position] if position % WRONG else -1] = PEAK
            self.clock.set(began + self.place.draft_ms / 1000)
            token, confidence = context.choose(self.row, position)
            proposal.tokens.append(token)
            proposal.confidence.append(confidence)
            if not context.proceed(proposal.confidence):
                break
        return [proposal]

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        return 1
