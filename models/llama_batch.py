"""Spans as llama.cpp takes them: laid one after the other in a batch, and cut where one takes fewer."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np

from draftd.models.base import Span, leveled

# Rows that llama.cpp's kernels for repacked weights take at once: what is left goes by the smaller tile, then
# one by one.
TILE, TILES = 4, 16


class Batch:
    """A llama_batch over numpy arrays, so that filling it costs the same for one token and for many."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._token = np.zeros(size, np.int32)
        self._position = np.zeros(size, np.int32)
        self._count = np.ones(size, np.int32)
        self._slot = np.zeros(size, np.int32)
        self._slot_at = np.zeros(size + 1, np.uintp)  # one pointer a token into _slot, then a null
        self._slot_at[:-1] = self._slot.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self._wanted = np.zeros(size, np.int8)
        kinds = dict(llama_cpp.llama_batch._fields_)
        self.struct = llama_cpp.llama_batch(
            0,
            ctypes.cast(self._token.ctypes.data, kinds["token"]),
            None,
            ctypes.cast(self._position.ctypes.data, kinds["pos"]),
            ctypes.cast(self._count.ctypes.data, kinds["n_seq_id"]),
            ctypes.cast(self._slot_at.ctypes.data, kinds["seq_id"]),
            ctypes.cast(self._wanted.ctypes.data, kinds["logits"]),
        )

    def fill(self, spans: Sequence[Span], surplus: Sequence[int]) -> list[int]:
        """Lay the spans one after the other, each one's last token so many times more behind it.

        Gives the batch index of each span's first wanted row.
        """
        first_rows = []
        at = 0
        for span, more in zip(spans, surplus, strict=True):
            end, over = at + len(span.tokens), at + len(span.tokens) + more
            self._token[at:end] = span.tokens
            self._token[end:over] = span.tokens[-1]
            self._position[at:over] = range(span.start, span.start + over - at)
            self._slot[at:over] = span.slot
            self._wanted[at:over] = 0
            self._wanted[end - span.rows : end] = 1
            first_rows.append(end - span.rows)
            at = over
        self.struct.n_tokens = at
        return first_rows


def split(spans: Sequence[Span], size: int) -> list[list[tuple[int, Span]]]:
    """The spans cut so that each pass has at most `size` tokens, each piece with its span's index.

    By slot: llama.cpp computes slots together only where each one's number follows the last one's.
    """
    ordered = sorted(enumerate(spans), key=lambda pair: pair[1].slot)
    if sum(len(span.tokens) for span in spans) <= size:
        return [ordered]
    passes: list[list[tuple[int, Span]]] = [[]]
    room = size
    for index, span in ordered:
        done, total = 0, len(span.tokens)
        while done < total:
            if not room:
                passes.append([])
                room = size
            take = min(room, total - done)
            rows = max(0, min(take, done + take - (total - span.rows)))
            piece = Span(span.slot, span.start + done, span.tokens[done : done + take], rows)
            passes[-1].append((index, piece))
            done += take
            room -= take
    return passes


def surplus_of(spans: Sequence[Span], tiled: bool, context: int, size: int) -> list[int]:
    """How many tokens more to feed behind each span, of which nothing is kept, as that takes less time.

    A whole tile of rows takes less than most of one, and spans of one length one pass instead of several.
    None where a slot's `context` or the batch's `size` has no room for them.
    """
    widths = [len(span.tokens) for span in spans]
    none = surplus = [0] * len(spans)
    if len(spans) > 1:
        surplus = leveled(widths)
    elif tiled:
        more = 1 if widths[0] == TILE - 1 else -widths[0] % TILES
        surplus = [more] if more < TILE else none
    ends = [span.start + width + more for span, width, more in zip(spans, widths, surplus, strict=True)]
    fits = max(ends) <= context and sum(widths) + sum(surplus) <= size
    return surplus if fits else none
