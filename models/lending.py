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
        return self._target.lengths[slot] if self.able else 0

    def lend(self, slot: int, tokens: Sequence[int]) -> int:
        """Give the draft what the target holds of these tokens; how many of them the draft holds now.

        Fewer than all where the two turn out to differ. The target's slot begins with these tokens.
        """
        if self._layout is None:
            if len(tokens) < TRIAL or max(tokens[:TRIAL]) >= self._draft.vocab:
                return 0
            if reason := self._try(slot, tokens[:TRIAL]):
                self.able = False
                log.info("the draft reads for itself, as its keys are not the target's: %s", reason)
                return TRIAL
            log.info("the draft takes the target's keys and values: it is the same model")
        assert self._layout is not None
        layers = self._arranged(self._target.keys_and_values(slot, len(tokens)))
        self._draft.load_slot(slot, self._layout.write(layers), len(tokens))
        return len(tokens)

    def _try(self, slot: int, tokens: Sequence[int]) -> str:
        """Let the draft compute what the target has; why nothing can be lent, or empty."""
        self._draft.forward([Span(slot, 0, tokens, 0)])
        state = self._draft.save_slot(slot)
        layout = None if state is None else Layout.read_from(state, self._target.shape)
        if state is None or layout is None:
            return "llama.cpp keeps them in another form"
        theirs, ours = layout.read(state, len(tokens)), self._target.keys_and_values(slot, len(tokens))
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
        return [
            (keys.reshape(*keys.shape[:2], 2, -1).swapaxes(2, 3).reshape(keys.shape), values)
            for keys, values in layers
        ]


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
        width = int(words[cells + 3]) // 2  # bytes of a key row, of 16 bits each
        head, tail = state[: 4 * count].tobytes(), b"\0" * (4 * (int(words[2]) - 1 - (count - 3)))
        layout = Layout(head, int(words[count + 3]), tail, heads, bool(words[cells]), layers, width // heads)
        try:
            same = np.array_equal(layout.write(layout.read(state, TRIAL)), state)
        except ValueError:  # too short for what it would hold
            return None
        return layout if same else None

    def write(self, layers: Layers) -> State:
        """A state of these keys and values, for any slot."""
        length = layers[0][0].shape[1]
        width = self.heads * self.dim
        cells = np.empty((length, 3), np.int32)  # position, number of sequences, sequence
        cells[:] = 0, 1, self.sequence
        cells[:, 0] = np.arange(length)
        parts = [self.head, _words(length), cells.tobytes(), _words(int(self.transposed), self.layers)]
        rows = _words(1, 2 * width, 0)  # type F16, then bytes of a row in 64 bits
        for keys, _ in layers:
            parts += [rows, keys.transpose(1, 0, 2).tobytes()]
        for _, values in layers:
            if self.transposed:
                parts += [_words(1, 2, width), values.transpose(0, 2, 1).tobytes()]
            else:
                parts += [rows, values.transpose(1, 0, 2).tobytes()]
        return np.frombuffer(b"".join([*parts, self.tail]), np.uint8)

    def read(self, state: State, length: int) -> Layers:
        """What `write` was given; ValueError if there is too little."""
        size, at = 2 * self.heads * self.dim * length, len(self.head) + 4 + 12 * length + 8
        blocks = []
        for _ in range(2 * self.layers):
            at += 12
            blocks.append(state[at : at + size].view(np.float16))
            at += size
        by_position, by_dim = (length, self.heads, self.dim), (self.heads, self.dim, length)
        keys = [block.reshape(by_position).transpose(1, 0, 2) for block in blocks[: self.layers]]
        values = [
            block.reshape(by_dim).transpose(0, 2, 1)
            if self.transposed
            else block.reshape(by_position).transpose(1, 0, 2)
            for block in blocks[self.layers :]
        ]
        return list(zip(keys, values, strict=True))


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
