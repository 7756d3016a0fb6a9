"""A draft that asks a small model, token by token, for what the target will say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from draftd.drafts.base import Context, Proposal, common_prefix


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to feed into a slot at position `start`; logits are wanted for the last `rows` of them."""

    slot: int
    start: int
    tokens: Sequence[int]
    rows: int


class Model(Protocol):
    """What this draft needs of a model; a target of draftd.models offers it."""

    vocab: int
    context: int

    def forward(self, spans: Sequence[Any], /) -> Sequence[NDArray[np.float32]]: ...

    def truncate(self, slot: int, length: int, /) -> None: ...

    def copy_prefix(self, source: int, target: int, length: int, /) -> None: ...

    def drop(self, slots: Sequence[int], /) -> None: ...

    def set_threads(self, count: int, /) -> None: ...

    def close(self) -> None: ...


class LlamaDraft:
    """drafts.base.Draft over a model that drafts alone use; `shared`: token ids below it may be proposed."""

    def __init__(self, model: Model, shared: int | None = None) -> None:
        self.tokens_fed = 0  # since the start, prompts included: shows how much the cache saves
        self._model = model
        self._shared = model.vocab if shared is None else shared
        self._seen: dict[int, list[int]] = {}  # by slot: the tokens in the model's cache

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """One proposal a context; all of a round share each pass of the model.

        A context with nothing to draft is left alone: it catches up when it next drafts.
        """
        proposals = [Proposal(drawn=True) for _ in contexts]
        live, feeds = [], []
        for context, proposal in zip(contexts, proposals, strict=True):
            if context.limit > 0 and (rest := self._unseen(context.slot, context.tokens)):
                live.append((context, proposal))
                feeds.append((context.slot, rest))
        while live:
            rows = self._feed(feeds)
            drafting, live, feeds = live, [], []
            for (context, proposal), row in zip(drafting, rows, strict=True):
                if self._draft_one(context, proposal, row[-1, : self._shared]):
                    live.append((context, proposal))
                    feeds.append((context.slot, proposal.tokens[-1:]))
        return proposals

    def forget(self, slot: int) -> None:
        """Drop what is cached for a slot."""
        if self._seen.pop(slot, None):
            self._model.truncate(slot, 0)

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        """Cache a sequence ahead of the request that will draft from it."""
        if self.unseen(slot, tokens) and (rest := self._unseen(slot, tokens)):
            self._feed([(slot, rest)])

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's tokens are not cached for the slot."""
        return len(tokens) - common_prefix(self._seen.get(slot, []), tokens)

    def copy(self, source: int, target: int, length: int) -> None:
        """Make what is cached for slot `target` the first `length` tokens of what is for `source`."""
        seen = self._seen.get(source, [])[:length]
        if seen:
            self._model.copy_prefix(source, target, len(seen))
            self._seen[target] = seen

    def drop(self, slots: Sequence[int]) -> None:
        """Forget these slots and give their memory back to the system, as far as that can be done."""
        for slot in slots:
            self._seen.pop(slot, None)
        self._model.drop(slots)

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next proposal on."""
        self._model.set_threads(count)

    def close(self) -> None:
        """Free the draft's memory."""
        self._model.close()

    def _draft_one(self, context: Context, proposal: Proposal, row: NDArray[np.float32]) -> bool:
        """Add the next token to a proposal; whether to feed it and go on."""
        position = len(context.tokens) + len(proposal.tokens)
        token, confidence = context.choose(row, position)
        proposal.tokens.append(token)
        proposal.confidence.append(confidence)
        if len(proposal.tokens) >= context.limit or position >= self._model.context:
            return False
        return context.proceed(proposal.confidence)

    def _unseen(self, slot: int, sequence: Sequence[int]) -> list[int]:
        """Roll the slot back to what it shares with a sequence; gives what is to be fed.

        At least the last token is fed, for its row. Empty if the model can't take the tokens.
        """
        tokens = list(sequence)
        seen = self._seen.get(slot, [])
        keep = min(common_prefix(seen, tokens), len(tokens) - 1)
        rest = tokens[keep:]
        if len(tokens) > self._model.context or max(rest) >= self._model.vocab:
            return []
        self._model.truncate(slot, keep)
        self._seen[slot] = tokens[:keep]
        return rest

    def _feed(self, feeds: Sequence[tuple[int, list[int]]]) -> Sequence[NDArray[np.float32]]:
        rows = self._model.forward([Feed(slot, len(self._seen[slot]), new, 1) for slot, new in feeds])
        for slot, new in feeds:
            self._seen[slot] += new
            self.tokens_fed += len(new)
        return rows
