"""What every target and tokenizer offers: the shapes that the engine is written against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # [rows, vocab] raw logits, valid until the next forward of the same target
# [heads, length, dim] each: a layer's keys, as they are attended to, and its values
Layers = Iterable[tuple[NDArray[np.float16], NDArray[np.float16]]]
State = NDArray[np.uint8]  # [bytes] a slot's keys and values, of use to the same model and backend only


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens to feed into a slot at position `start`; logits are wanted for the last `rows` of them."""

    slot: int
    start: int
    tokens: Sequence[int]
    rows: int


PASS_ROWS = 48  # rows that cost as much as one more pass over the weights: a 1.5B model on a CPU
SURPLUS = 3  # tokens; a pass reads all weights, and to feed so many in vain takes no longer than another


def leveled(widths: Sequence[int]) -> list[int]:
    """How many tokens to add to each span so that all are as long as the longest; none if that is too much.

    Where spans of unequal lengths (`Target.even`) would be computed in several passes.
    """
    longest = max(widths)
    surplus = [longest - width for width in widths]
    return surplus if sum(surplus) <= SURPLUS else [0] * len(widths)


def padded_passes(widths: Sequence[int]) -> list[list[int]]:
    """The passes in which spans of these lengths are padded to the longest (`Target.padded`), it first.

    They are cut where the padding saved is worth another pass.
    """
    widths = sorted(widths, reverse=True)
    savings = [(widths[0] - width) * (len(widths) - at) for at, width in enumerate(widths)]  # rows, if cut at
    saved = max(savings, default=0)
    if saved > PASS_ROWS:
        cut = savings.index(saved)
        return padded_passes(widths[:cut]) + padded_passes(widths[cut:])
    return [widths] if widths else []


def is_even(spans: Sequence[Span]) -> bool:
    """Are these spans, filled up, of one length, and in slots that follow each other?"""
    slots = [span.slot for span in spans]
    widths = [len(span.tokens) for span in spans]
    filled = {width + more for width, more in zip(widths, leveled(widths), strict=True)}
    return len(filled) == 1 and max(slots) - min(slots) + 1 == len(slots)


def rows_of_pass(target: Target, spans: Sequence[Span]) -> int:
    """The rows that a target computes for these spans in one pass; 0 where it takes several."""
    widths = [len(span.tokens) for span in spans]
    if not (target.even or target.padded):
        return sum(widths)
    one = is_even(spans) if target.even else len(padded_passes(widths)) == 1
    return len(widths) * max(widths) if one else 0


class Target(Protocol):
    """A language model with a key-value cache of numbered slots, each a sequence of positions."""

    vocab: int  # width of a row of logits, padding included
    slots: int
    context: int  # positions a slot can hold
    even: bool  # a pass takes spans that `is_even` only: others are computed in several passes
    padded: bool  # a pass computes as many rows for each span as for the longest of it

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        """Feed many requests in one pass (at most one span a slot); one [rows, vocab] array a span."""
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget all positions of a slot from `length` on, in O(1)."""
        ...

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `target` equal those of `source`."""
        ...

    def save_slot(self, slot: int) -> State | None:
        """All of a slot's keys and values, in their own memory; None if this model's can't be had whole."""
        ...

    def load_slot(self, slot: int, state: State, length: int) -> None:
        """Make a slot's content the first `length` positions of what `save_slot` gave, for any slot.

        ValueError if the state can't be this model's; the slot is empty then.
        """
        ...

    def drop(self, slots: Sequence[int]) -> None:
        """Empty these slots and give their memory back to the system, as far as that can be done."""
        ...

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next forward on."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


class TextStream(Protocol):
    """Turns one answer's tokens into text, never splitting a character."""

    def push(self, token: int) -> str:
        """The text that became complete with this token, possibly empty."""
        ...

    def flush(self) -> str:
        """What is left at the end: incomplete bytes as U+FFFD."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back; used at the edges only, never inside the loop."""

    size: int  # token ids below this have a text
    stop_ids: frozenset[int]  # end of sequence, end of turn

    def encode(self, text: str) -> list[int]:
        """A plain prompt's ids, with the model's own leading tokens if it wants any."""
        ...

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), *, answer: bool = True
    ) -> str:
        """A conversation's text through the model's chat template; `answer`: ending where the answer begins.

        InvalidRequest says why it can't be. The tools are OpenAI's function definitions.
        """
        ...

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """A conversation's ids through the model's chat template, ending where the answer begins."""
        ...

    def plain(self, text: str) -> list[int]:
        """A text's ids and nothing else: no leading tokens, and none for what looks like a control token."""
        ...

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes a token adds to the text; none for control tokens."""
        ...

    def piece(self, token: int) -> str:
        """The token's raw vocabulary entry, as the tokenizer file spells it; compared by the pair check."""
        ...

    def stream(self, behind: Sequence[int] = ()) -> TextStream:
        """A fresh decoder for one answer to a prompt of these tokens: none of its text is the answer's."""
        ...
