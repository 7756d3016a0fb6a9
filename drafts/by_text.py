"""A draft with another tokenizer whose text the target's tokenizer cuts into tokens.

String-level exact match (Timor et al. 2025, arXiv 2502.05202, algorithm 2): the context's text is retokenised
for the draft, and what the draft goes on with, greedily, is retokenised for the target. For vocabularies that
share too few tokens for by_tokens.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from draftd.drafts.base import Context, Draft, Proposal, exchange

STEPS = 8  # of the draft at most for a token of the target


class Texts(Protocol):
    """One vocabulary's texts."""

    def text(self, token: int, /) -> bytes: ...  # empty: a control token

    def spell(self, text: bytes, /) -> list[int]: ...


class Translation(Protocol):
    """What this draft needs to know of the two vocabularies; draftd.models offers it."""

    @property
    def draft(self) -> Texts: ...

    @property
    def target(self) -> Texts: ...

    def target_id(self, token: int, /) -> int | None: ...

    def retokenised(self, tokens: Sequence[int], whole: bool = True, /) -> list[int]: ...

    def cut(self, tokens: Sequence[int], /) -> int: ...


@dataclass(slots=True)
class _Read:
    """The part of a slot's sequence, up to a word's beginning, whose spelling later tokens don't change."""

    tokens: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


class TextDraft:
    """drafts.base.Draft over one that works in its own tokens."""

    same_model = False

    def __init__(self, draft: Draft, translation: Translation) -> None:
        self._draft = draft
        self._translation = translation
        self._read: dict[int, _Read] = {}  # by slot

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """One proposal a context, in the target's tokens."""
        drafted = [_Drafted(context, self._translation) for context in contexts]
        self._draft.propose(
            [
                Context(
                    context.slot,
                    self._draft_ids(context.slot, context.tokens),
                    context.limit * STEPS,
                    each.choose,
                    each.proceed,
                    context.scope,
                    context.reading,
                )
                for context, each in zip(contexts, drafted, strict=True)
            ]
        )
        return [each.proposal() for each in drafted]

    def forget(self, slot: int) -> None:
        """Drop what is cached for a slot."""
        self._read.pop(slot, None)
        self._draft.forget(slot)

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        """Cache a sequence ahead of the request that will draft from it."""
        self._draft.prepare(slot, self._draft_ids(slot, tokens))

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's tokens, counted in the draft's own, are still to be read for the slot."""
        return self._draft.unseen(slot, self._draft_ids(slot, tokens))

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` begin with what is cached for `source`, `length` tokens of the draft's own."""
        self._draft.copy(source, target, length)

    def swap(self, one: int, other: int) -> None:
        """Exchange what is cached for two slots; what can't be moved is forgotten."""
        exchange(self._read, one, other)
        self._draft.swap(one, other)

    def drop(self, slots: Sequence[int]) -> None:
        """Forget these slots and give their memory back to the system, as far as that can be done."""
        for slot in slots:
            self._read.pop(slot, None)
        self._draft.drop(slots)

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next proposal on."""
        self._draft.set_threads(count)

    def close(self) -> None:
        """Free the draft's memory."""
        self._draft.close()

    def _draft_ids(self, slot: int, sequence: Sequence[int]) -> list[int]:
        """A sequence in the draft's tokens; only what is new since the slot's last word is retokenised."""
        tokens, read = list(sequence), self._read.get(slot, _Read())
        if tokens[: len(read.tokens)] != read.tokens:
            read = _Read()
        done = len(read.tokens)
        cut = done + self._translation.cut(tokens[done:])
        if cut > done:
            ids = read.ids + self._translation.retokenised(tokens[done:cut], not done)
            read = self._read[slot] = _Read(tokens[:cut], ids)
        return read.ids + self._translation.retokenised(tokens[cut:], not cut)


class _Drafted:
    """The text that the draft gives for one context, token by token."""

    def __init__(self, context: Context, translation: Translation) -> None:
        self._context = context
        self._translation = translation
        self._text = bytearray()
        self._drafted: list[
            tuple[int, float]
        ] = []  # where in the text a draft's token begins; its probability
        self._end: int | None = None  # the target's control token that ends the text
        self._ended = False

    def choose(self, row: NDArray[np.float32], _: int) -> tuple[int, float]:
        """The draft's likeliest token: noise chooses among the target's tokens, of which this is none."""
        token = int(row.argmax())
        confidence = float(1.0 / np.exp(row - row[token]).sum())
        text = self._translation.draft.text(token)
        self._drafted.append((len(self._text), confidence))
        self._text += text
        if not text:
            self._ended, self._end = True, self._translation.target_id(token)
        return token, confidence

    def proceed(self, _: Sequence[float]) -> bool:
        """Whether to draft on, as the target's tokens are so far."""
        proposal = self.proposal()
        if self._ended or len(proposal.tokens) >= self._context.limit:
            return False
        return not proposal.tokens or self._context.proceed(proposal.confidence)

    def proposal(self) -> Proposal:
        """The target's tokens of the text but the last if more text could change it, with their confidence.

        A token's confidence is the product of the probabilities of the draft's tokens that begin in it.
        """
        proposal, text = Proposal(), self._translation.target.text
        begin, parts = 0, iter(self._drafted)
        part = next(parts, None)
        for token in self._stable():
            end = begin + len(text(token))
            confidence = 1.0
            while part is not None and part[0] < end:
                confidence *= part[1]
                part = next(parts, None)
            proposal.tokens.append(token)
            proposal.confidence.append(confidence)
            begin = end
        if self._end is not None:
            proposal.tokens.append(self._end)
            proposal.confidence.append(self._drafted[-1][1])
        limit = self._context.limit
        return Proposal(proposal.tokens[:limit], proposal.confidence[:limit])

    def _stable(self) -> list[int]:
        """The target's tokens that further text leaves as they are.

        The last one is kept if it is one word of the draft's, too: what is put together from several of the
        draft's tokens, or is short, or space, mostly goes on.
        """
        text = bytes(self._text)
        tokens = self._translation.target.spell(text if self._ended else text[: _whole(text)])
        if not tokens or self._ended:
            return tokens
        last = self._translation.target.text(tokens[-1])
        begins = len(text) - len(last)
        begun = self._drafted[-1][0]
        one = begun <= begins and text.endswith(last)
        return tokens if one and len(text) - begun > 1 and not last.isspace() else tokens[:-1]


def _whole(text: bytes) -> int:
    """Where the last whole character ends."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:  # the first byte of a character of 2 to 4
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(text) - back if back < size else len(text)
        if byte < 0x80:
            break
    return len(text)
