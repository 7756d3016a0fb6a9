"""The keys and values of a target in transformers, lent to a draft in llama.cpp that is the same model.

A target quantised to 4 bits drafts well for itself, and need not read what the target has read: keys and
values of both are alike. Whether they are is seen once, by those of a few tokens that both computed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from draftd.models.base import Layers, Span, State

log = logging.getLogger("draftd.engine")

TRIAL = 8  # tokens that both compute before anything is lent
ALIKE = 0.8  # least correlation of what both have in a layer
LARGEST = 1 << 30  # bytes that are handed over at once: beyond, the draft reads for itself


@runtime_checkable
class Holder(Protocol):
    """What a target that can lend offers."""

    lengths: Sequence[int]  # positions held by slot
    shape: tuple[int, int, int]  # layers, heads of keys, width

    def keys_and_values(self, slot: int, length: int) -> Layers: ...


class Borrower(Protocol):
    """What a draft's model offers that can borrow."""

    vocab: int
    shape: tuple[int, int, int]

    def forward(self, spans: Sequence[Span]) -> Any: ...

    def save_slot(self, slot: int) -> State | None: ...

    def load_slot(self, slot: int, state: State, length: int) -> None: ...


def between(target: object, draft: Borrower) -> Lender | None:
    """What lends the target's keys and values to the draft; None where they can't be one model's."""
    return Lender(target, draft) if isinstance(target, Holder) and target.shape == draft.shape else None


class Lender:
    """Fills slots of the draft with what the same slots of the target hold."""

    def __init__(self, target: Holder, draft: Borrower) -> None:
        self._target, self._draft = target, draft
        self._layout: Layout | None = None
        self._interleaved = False
        self.able = True  # as far as is known

    def held(self, slot: int) -> int:
        """Positions of a slot that can be lent."""
        length = self._target.lengths[slot]
        return length if self.able and not self._too_many(length) else 0

    def lend(self, slot: int, tokens: Sequence[int]) -> int:
        """Give the draft what the target holds of these tokens; how many of them the draft holds now.

        Fewer than all where the two turn out to differ; 0: it holds what it did, for these can't be compared.
        The target's slot begins with these tokens.
        """
        if self._layout is None:
            if len(tokens) < TRIAL or max(tokens[:TRIAL]) >= self._draft.vocab:
                return 0
            if reason := self._try(slot, tokens[:TRIAL]):
                self.able = False
                log.info("the draft reads for itself, as its keys are not the target's: %s", reason)
                return TRIAL
            log.info("the draft takes the target's keys and values: it is the same model")
            if self._too_many(len(tokens)):
                return TRIAL
        assert self._layout is not None
        layers = self._arranged(self._target.keys_and_values(slot, len(tokens)))
        self._draft.load_slot(slot, self._layout.write(layers, len(tokens)), len(tokens))
        return len(tokens)

    def _too_many(self, length: int) -> bool:
        return self._layout is not None and self._layout.size(length) > LARGEST

    def _try(self, slot: int, tokens: Sequence[int]) -> str:
        """Let the draft compute what the target has; why nothing can be lent, or empty."""
        self._draft.forward([Span(slot, 0, tokens, 0)])
        state = self._draft.save_slot(slot)
        layout = None if state is None else Layout.read_from(state, self._target.shape)
        if state is None or layout is None:
            return "llama.cpp keeps them in another form"
        theirs, ours = layout.read(state), list(self._target.keys_and_values(slot, len(tokens)))
        for interleaved in (False, True):
            self._interleaved = interleaved
            likeness = _likeness(self._arranged(ours), theirs)
            if likeness >= ALIKE:
                self._layout = layout
                return ""
        return f"they correlate by {likeness:.2f}"

    def _arranged(self, layers: Layers) -> Layers:
        """Keys as llama.cpp turns them: some families' by neighbours, where transformers takes halves."""
        if not self._interleaved:
            return layers
        return (
            (keys.reshape(*keys.shape[:2], 2, -1).swapaxes(2, 3).reshape(keys.shape), values)
            for keys, values in layers
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """How llama.cpp writes a sequence (`llama_kv_cache::state_write`): its cells, all keys, all values."""

    head: bytes  # what it is, and the buffers before this one, which are empty
    sequence: int
    tail: bytes  # the buffers behind it
    heads: int
    transposed: bool  # values are written by dimension, each with all positions
    layers: int
    dim: int

    @staticmethod
    def read_from(state: State, shape: tuple[int, int, int]) -> Layout | None:
        """The layout of a state of `TRIAL` positions in 16 bits; None if it is written in another form."""
        words = state[: state.size // 4 * 4].view(np.uint32)
        count = next((at for at in range(3, len(words)) if words[at]), 0)
        cells = count + 1 + 3 * TRIAL
        if not count or words[count] != TRIAL or len(words) < cells + 5:
            return None
        layers, heads, _ = shape
        width = int(words[cells + 3]) // 2  # of a position's keys, whose bytes are told
        head, tail = state[: 4 * count].tobytes(), b"\0" * (4 * (int(words[2]) - 1 - (count - 3)))
        layout = Layout(head, int(words[count + 3]), tail, heads, bool(words[cells]), layers, width // heads)
        if layout.size(TRIAL) != state.size:
            return None
        return layout if np.array_equal(layout.write(layout.read(state), TRIAL), state) else None

    def size(self, length: int) -> int:
        """Bytes of a state of so many positions."""
        return self._start(length) + 2 * self.layers * self._block(length) + len(self.tail)

    def write(self, layers: Layers, length: int) -> State:
        """A state of these keys and values, for any slot."""
        cells = np.empty((length, 3), np.int32)  # position, number of sequences, sequence
        cells[:] = 0, 1, self.sequence
        cells[:, 0] = np.arange(length)
        start = [self.head, _words(length), cells.tobytes(), _words(int(self.transposed), self.layers)]
        width = self.heads * self.dim
        rows = _words(1, 2 * width, 0)  # type F16, then bytes of a row in 64 bits
        headers = rows, _words(1, 2, width) if self.transposed else rows
        state = np.empty(self.size(length), np.uint8)
        state[: self._start(length)] = np.frombuffer(b"".join(start), np.uint8)
        state[state.size - len(self.tail) :] = np.frombuffer(self.tail, np.uint8)
        for layer, pair in enumerate(layers):
            for numbers, header, (begin, view) in zip(pair, headers, self._places(state, layer), strict=True):
                state[begin - len(header) : begin] = np.frombuffer(header, np.uint8)
                view[...] = numbers
        return state

    def read(self, state: State) -> list[tuple[NDArray[np.float16], NDArray[np.float16]]]:
        """What `write` was given."""
        pairs = (self._places(state, layer) for layer in range(self.layers))
        return [(keys, values) for (_, keys), (_, values) in pairs]

    def _places(self, state: State, layer: int) -> list[tuple[int, NDArray[np.float16]]]:
        """Where in a state a layer's keys and its values begin, and both as [heads, length, dim]."""
        length = int(state[len(self.head) : len(self.head) + 4].view(np.uint32)[0])
        places = []
        for part in range(2):
            end = self._start(length) + (part * self.layers + layer + 1) * self._block(length)
            begin = end - self._block(length) + 12
            numbers = state[begin:end].view(np.float16)
            if part and self.transposed:
                view = numbers.reshape(self.heads, self.dim, length).transpose(0, 2, 1)
            else:
                view = numbers.reshape(length, self.heads, self.dim).transpose(1, 0, 2)
            places.append((begin, view))
        return places

    def _start(self, length: int) -> int:
        """Bytes before the first layer: 12 a cell."""
        return len(self.head) + 4 + 12 * length + 8

    def _block(self, length: int) -> int:
        """Bytes of a layer's keys, or of its values, with what tells their type."""
        return 12 + 2 * self.heads * self.dim * length


def _words(*values: int) -> bytes:
    return np.array(values, np.uint32).tobytes()


def _likeness(ours: Layers, theirs: Layers) -> float:
    """The least correlation of any layer's keys or values."""
    pairs = [pair for mine, other in zip(ours, theirs, strict=True) for pair in zip(mine, other, strict=True)]
    return min(_correlation(*pair) for pair in pairs)


def _correlation(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    """Of two sets of numbers, about zero."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    if a.shape != b.shape:
        return 0.0
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0
