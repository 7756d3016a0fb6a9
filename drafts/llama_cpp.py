"""A draft that asks a small model, token by token, for what the target will say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from draftd.drafts.base import Context, Proposal, common_prefix, exchange


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

    def save_slot(self, slot: int, /) -> NDArray[np.uint8] | None: ...

    def load_slot(self, slot: int, state: NDArray[np.uint8], length: int, /) -> None: ...

    def drop(self, slots: Sequence[int], /) -> None: ...

    def set_threads(self, count: int, /) -> None: ...

    def close(self) -> None: ...


class Lender(Protocol):
    """A target of the same model, which holds what this draft would compute."""

    able: bool

    def held(self, slot: int, /) -> int: ...

    def lend(self, slot: int, tokens: Sequence[int], /) -> int: ...


@dataclass(slots=True)
class Read:
    """What a slot's cache holds: these tokens, less the stretches (start, stop) that were left unread."""

    tokens: list[int] = field(default_factory=list)
    unread: list[tuple[int, int]] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Tokens in the model's cache, which stand there one behind the other."""
        return len(self.tokens) - sum(stop - start for start, stop in self.unread)

    def cut(self, length: int) -> Read:
        """What of it belongs to the first `length` tokens; it never ends within an unread stretch."""
        for start, stop in self.unread:
            if start <= length <= stop:
                length = start
        return Read(self.tokens[:length], [each for each in self.unread if each[1] <= length])

    def before(self, tokens: list[int], reading: int | None) -> Read:
        """What is through before the rest of `tokens` is fed: one at least, `reading` of them at most."""
        read = self.cut(common_prefix(self.tokens, tokens[:-1]))
        done = len(read.tokens)
        first = done if reading is None else max(done, len(tokens) - max(1, reading))
        return Read(tokens[:first], [*read.unread, (done, first)]) if first > done else read


PREPARED = 128  # tokens read ahead at a time: a request that comes meanwhile waits for them


class LlamaDraft:
    """drafts.base.Draft over a model that drafts alone use; `shared`: token ids below it may be proposed.

    A `lender` spares it the reading of what the target has read.
    """

    def __init__(self, model: Model, shared: int | None = None, lender: Lender | None = None) -> None:
        self._model = model
        self._lender = lender
        self._lending, self._reading = 0.0, inf  # seconds a token, as last seen
        self._tried = False  # the first time takes longer: the lender compares
        self._shared = model.vocab if shared is None else shared
        self._read: dict[int, Read] = {}  # by slot

    @property
    def same_model(self) -> bool:
        """Does its target lend it keys and values, as far as is known?"""
        return self._lender is not None and self._lender.able

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """One proposal a context; all of a round share each pass of the model.

        A context with nothing to draft is left alone: it catches up when it next drafts.
        """
        proposals = [Proposal(drawn=True) for _ in contexts]
        live, feeds = [], []
        for context, proposal in zip(contexts, proposals, strict=True):
            if context.limit <= 0:
                continue
            if rest := self._unseen(context.slot, context.tokens, context.reading):
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
        if self._read.pop(slot, None):
            self._model.truncate(slot, 0)

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        """Cache a sequence ahead of the request that will draft from it, with what was left unread of it."""
        if len(tokens) > self._model.context:
            return  # of which half is read: another half each time, were it read ahead
        if self.same_model:
            return
        read = self._read.get(slot, Read())
        if read.unread:
            self._read[slot] = read.cut(read.unread[0][0])
        rest = self._unseen(slot, tokens, None) if self.unseen(slot, tokens) else []
        if rest:
            self._feed([(slot, rest[:PREPARED])])

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's tokens, counted from its end, are still to be read for the slot."""
        return len(tokens) - max(self._known(slot, tokens), self._lendable(slot, tokens))

    def copy(self, source: int, target: int, length: int) -> None:
        """Make what is cached for slot `target` the first `length` tokens of what is for `source`."""
        read = self._read.get(source, Read()).cut(length)
        if read.tokens:
            self._model.copy_prefix(source, target, read.cached)
            self._read[target] = read

    def swap(self, one: int, other: int) -> None:
        """Exchange what is cached for two slots; what can't be moved is forgotten."""
        states = [self._model.save_slot(slot) if slot in self._read else None for slot in (one, other)]
        exchange(self._read, one, other)
        for slot, state in zip((other, one), states, strict=True):
            self._model.truncate(slot, 0)
            if state is not None:
                self._model.load_slot(slot, state, self._read[slot].cached)
            else:
                self._read.pop(slot, None)

    def drop(self, slots: Sequence[int]) -> None:
        """Forget these slots and give their memory back to the system, as far as that can be done."""
        for slot in slots:
            self._read.pop(slot, None)
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
        if len(proposal.tokens) >= context.limit or self._read[context.slot].cached >= self._model.context:
            return False
        return context.proceed(proposal.confidence)

    def _unseen(self, slot: int, sequence: Sequence[int], reading: int | None) -> list[int]:
        """Roll the slot back to what it shares with a sequence; gives what is to be fed.

        At least the last token is fed, for its row. What would not fit the draft's own context begins anew
        with the newest half of it. Empty if the model does not have a token, or nothing is left of a
        sequence that was translated.
        """
        tokens = list(sequence)
        self._borrow(slot, tokens)
        read = self._read.get(slot, Read()).before(tokens, reading)
        if read.cached + len(tokens) - len(read.tokens) > self._model.context:
            half = self._model.context // 2
            read = Read().before(tokens, min(reading or half, half))
        rest = tokens[len(read.tokens) :]
        if max(rest, default=self._model.vocab) >= self._model.vocab:
            return []
        self._model.truncate(slot, read.cached)
        self._read[slot] = read
        return rest

    def _known(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's first tokens are through for the slot, read or left unread."""
        read = self._read.get(slot, Read())
        return len(read.cut(common_prefix(read.tokens, tokens)).tokens)

    def _lendable(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's first tokens the target holds for this slot and lends."""
        if self._lender is None or len(tokens) > self._model.context:
            return 0
        return min(self._lender.held(slot), len(tokens) - 1)

    def _borrow(self, slot: int, tokens: list[int]) -> None:
        """Take from the target what would have to be read."""
        if self._lender is None or not (length := self._lendable(slot, tokens)):
            return
        missing = tokens[self._known(slot, tokens) : length]
        lacking = max(missing, default=0) >= self._model.vocab  # such a token can be lent, but not read
        if missing and (lacking or len(missing) * self._reading > length * self._lending):  # all is lent anew
            began = time.perf_counter()
            if held := self._lender.lend(slot, tokens[:length]):
                if self._tried:
                    self._lending = (time.perf_counter() - began) / length
                self._tried = True
                self._read[slot] = Read(tokens[:held])

    def _feed(self, feeds: Sequence[tuple[int, list[int]]]) -> Sequence[NDArray[np.float32]]:
        began = time.perf_counter()
        rows = self._model.forward([Feed(slot, self._read[slot].cached, new, 1) for slot, new in feeds])
        if (tokens := sum(len(new) for _, new in feeds)) > len(feeds):
            self._reading = (time.perf_counter() - began) / tokens
        for slot, new in feeds:
            self._read[slot].tokens += new
        return rows
