"""What one client scope's earlier requests said, bounded in tokens."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from draftd.drafts.suffix_index import END, RUN, Text
from draftd.drafts.suffix_store import Piece

CONTEXT = 64  # tokens repeated before what continues a known sequence
SEQUENCES = 512  # that are recognised when they come again, the newest ones


class History:
    """A log of sequences: the newest at the end, the oldest run dropped when there is too much.

    That evicts what was used longest ago: what a request uses is part of its own text, and so is added again
    at the end. Only a request that repeats or continues a known sequence adds no more than its new tokens,
    unless the known one has come to the log's older half.
    """

    def __init__(self, capacity: int) -> None:
        self.text = Text(run=min(RUN, max(capacity // 16, 1)))
        self._capacity = capacity
        self._added = 0  # tokens, ever
        self._known: dict[bytes, tuple[int, int]] = {}  # digest of a sequence: length, `_added` at its end

    def __len__(self) -> int:
        return len(self.text)

    def add(self, tokens: Sequence[int]) -> Piece | None:
        """Add a sequence; gives the part that was new, None if nothing was."""
        sequence = array("I", tokens)
        known, digest = self._known_prefix(sequence)
        if len(sequence) - known == 0:
            return None
        piece = Piece(sequence[max(known - CONTEXT, 0) :], len(sequence), digest)
        self.text.append(piece.tokens)
        self.text.end_sequence()
        self._learn(piece)
        while len(self.text) > self._capacity and self.text.drop_oldest():
            pass
        return piece

    def restore(self, pieces: Sequence[Piece]) -> None:
        """Add pieces of an earlier run, oldest first; they are sorted later, a run a look-up."""
        size = 0
        for first in range(len(pieces), 0, -1):  # the newest that fit
            size += len(pieces[first - 1].tokens) + 1
            if size > self._capacity:
                pieces = pieces[first:]
                break
        joined = array("I")
        for piece in pieces:
            joined += piece.tokens
            joined.append(END)
            self._learn(piece)
        self.text.append(joined, later=True)

    def _learn(self, piece: Piece) -> None:
        self._added += len(piece.tokens) + 1
        self._known.pop(piece.digest, None)
        self._known[piece.digest] = (piece.length, self._added)
        if len(self._known) > SEQUENCES:
            del self._known[next(iter(self._known))]

    def _known_prefix(self, sequence: array[int]) -> tuple[int, bytes]:
        """Length of the longest recent sequence that this one begins with, and this one's digest."""
        recent = self._added - self._capacity // 2
        lengths = sorted({length for length, end in self._known.values() if end > recent})
        hasher = hashlib.blake2b(digest_size=16)
        data = memoryview(sequence).cast("B")
        done = found = 0
        for length in [*(length for length in lengths if length < len(sequence)), len(sequence)]:
            hasher.update(data[done * 4 : length * 4])
            done = length
            entry = self._known.get(hasher.digest())
            if entry is not None and entry[1] > recent:
                found = length
        return found, hasher.digest()
