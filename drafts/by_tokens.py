"""A draft with another vocabulary that proposes the tokens which both have.

Token-level intersection (Timor et al. 2025, arXiv 2502.05202): the draft's logits of shared tokens become a
row of the target's, from which the request's own sampler picks. The target's ids choose the noise, so drafts
are accepted as often as with one tokenizer wherever the target's token is a shared one. A draft whose
vocabulary was trimmed is one of these too, token for token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from draftd.drafts.base import Context, Draft, Proposal

SEEN, MANY = 100, 0.05  # rounds, and the share of them that begin behind a token that a draft should not lack


class Translation(Protocol):
    """What this draft needs to know of the two vocabularies; draftd.models offers it."""

    def row(self, row: NDArray[np.float32], /) -> NDArray[np.float32]: ...

    def draft_id(self, token: int, /) -> int | None: ...

    def draft_ids(self, tokens: Sequence[int], /) -> list[int]: ...


class TokenDraft:
    """drafts.base.Draft over one that works in its own tokens."""

    def __init__(self, draft: Draft, translation: Translation) -> None:
        self._draft = draft
        self._translation = translation
        self.lacking = False  # many of the tokens that the target said of late
        self._rounds = self._lacked = 0

    @property
    def same_model(self) -> bool:
        """Does its target lend it keys and values, as far as is known?"""
        return self._draft.same_model

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """One proposal a context, in the target's tokens."""
        picked: list[list[int]] = [[] for _ in contexts]
        asked = [self._asked(context, tokens) for context, tokens in zip(contexts, picked, strict=True)]
        proposals = self._draft.propose(asked)
        return [
            Proposal(tokens, proposal.confidence, drawn=True)
            for tokens, proposal in zip(picked, proposals, strict=True)
        ]

    def forget(self, slot: int) -> None:
        """Drop what is cached for a slot."""
        self._draft.forget(slot)

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        """Cache a sequence ahead of the request that will draft from it."""
        self._draft.prepare(slot, self._translation.draft_ids(tokens))

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's tokens, counted in the draft's own, are still to be read for the slot."""
        self._look_at(tokens[-1])  # here, as this is asked in each round, whether anything is drafted or not
        return self._draft.unseen(slot, self._translation.draft_ids(tokens))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` begin with what is cached for `source`, `length` tokens of the draft's own."""
        self._draft.copy(source, target, length)

    def swap(self, one: int, other: int) -> None:
        """Exchange what is cached for two slots; what can't be moved is forgotten."""
        self._draft.swap(one, other)

    def drop(self, slots: Sequence[int]) -> None:
        """Forget these slots and give their memory back to the system, as far as that can be done."""
        self._draft.drop(slots)

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next proposal on."""
        self._draft.set_threads(count)

    def close(self) -> None:
        """Free the draft's memory."""
        self._draft.close()

    def _look_at(self, newest: int) -> None:
        """Count how much of what the target says, a token a round, the draft lacks."""
        self._rounds += 1
        self._lacked += self._translation.draft_id(newest) is None
        if self._rounds == SEEN:
            self.lacking = self._lacked > MANY * SEEN
            self._rounds = self._lacked = 0

    def _asked(self, context: Context, picked: list[int]) -> Context:
        """The same question in the draft's tokens; `picked` gets the target's tokens that it answers."""
        translation = self._translation

        def choose(row: NDArray[np.float32], _: int) -> tuple[int, float]:
            token, confidence = context.choose(translation.row(row), len(context.tokens) + len(picked))
            picked.append(token)
            return translation.draft_id(token) or 0, confidence

        def proceed(confidences: Sequence[float]) -> bool:
            # A token that the draft lacks, as a grammar may leave no other, can't be fed to it.
            return translation.draft_id(picked[-1]) is not None and context.proceed(confidences)

        tokens = translation.draft_ids(context.tokens)
        return Context(context.slot, tokens, context.limit, choose, proceed, context.scope, context.reading)
