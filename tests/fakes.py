"""A target and a draft with chosen logits, strict about what is in their slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from draftd.drafts.base import Context, Proposal, exchange
from draftd.models.base import Rows, Span, State


class TableTarget:
    """Logits are a fixed random function of the last two tokens that really stand in the slot."""

    def __init__(
        self, vocab: int = 8, slots: int = 4, context: int = 256, seed: int = 0, scale: float = 2.0
    ) -> None:
        self.vocab, self.slots, self.context = vocab, slots, context
        self.even = self.padded = False
        table = np.random.default_rng(seed).standard_normal((vocab, vocab, vocab)) * scale
        self.table = table.astype(np.float32)  # [token before last, last token, vocab]
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.fed = self.copied = self.loaded = 0  # tokens
        self.passes = 0
        self.widest = 0  # spans in one pass

    def row(self, tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        row: np.ndarray[tuple[int], np.dtype[np.float32]] = self.table[
            tokens[-2] if len(tokens) > 1 else 0, tokens[-1]
        ]
        return row.copy()  # processors write into rows

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        assert len({span.slot for span in spans}) == len(spans)
        self.passes += 1
        self.widest = max(self.widest, len(spans))
        answers = []
        for span in spans:
            held = self.held[span.slot]
            assert span.start == len(held), "a span must go on where its slot ends"
            assert 0 < len(span.tokens) <= self.context - span.start
            held += span.tokens
            self.fed += len(span.tokens)
            ends = range(len(held) - span.rows + 1, len(held) + 1)
            answers.append(
                np.stack([self.row(held[:end]) for end in ends])
                if span.rows
                else np.empty((0, self.vocab), np.float32)
            )
        return answers

    def truncate(self, slot: int, length: int) -> None:
        assert length <= len(self.held[slot])
        del self.held[slot][length:]

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:length]
        self.copied += length

    def save_slot(self, slot: int) -> State:
        return np.asarray(self.held[slot], np.int32).view(np.uint8)

    def load_slot(self, slot: int, state: State, length: int) -> None:
        self.held[slot] = state.view(np.int32)[:length].tolist()
        self.loaded += length

    def drop(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.held[slot].clear()

    def set_threads(self, count: int) -> None:
        pass

    def close(self) -> None:
        pass


class TableDraft:
    """Drafts from a table of its own; the same table as the target's makes a perfect draft."""

    same_model = False

    def __init__(self, table: TableTarget) -> None:
        self.table = table
        self.forgotten: list[int] = []
        self.prepared: dict[int, int] = {}  # tokens by slot
        self.copied: list[tuple[int, int, int]] = []

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [self._propose(context) for context in contexts]

    def _propose(self, context: Context) -> Proposal:
        proposal = Proposal(drawn=True)
        tokens = list(context.tokens)
        while len(proposal.tokens) < context.limit:
            token, confidence = context.choose(self.table.row(tokens), len(tokens))
            proposal.tokens.append(token)
            proposal.confidence.append(confidence)
            tokens.append(token)
            if not context.proceed(proposal.confidence):
                break
        return proposal

    def forget(self, slot: int) -> None:
        self.forgotten.append(slot)

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        self.prepared[slot] = len(tokens)

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        return len(tokens) - self.prepared.get(slot, 0)

    def copy(self, source: int, target: int, length: int) -> None:
        self.copied.append((source, target, length))

    def swap(self, one: int, other: int) -> None:
        exchange(self.prepared, one, other)

    def drop(self, slots: Sequence[int]) -> None:
        self.forgotten += slots

    def set_threads(self, count: int) -> None:
        pass

    def close(self) -> None:
        pass


class ScriptedDraft:
    """A draft that is sure of one of its own tokens after the other, in rows of its own width."""

    same_model = False

    def __init__(self, width: int, *says: int, sure: float = 5.0) -> None:
        self.width, self.says, self.sure = width, says, sure
        self.asked: list[list[int]] = []
        self.steps = 0  # tokens chosen
        self.fed: list[int] = []  # of them, those behind which another was wanted
        self.forgotten: list[int] = []
        self.closed = False

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [self._propose(context) for context in contexts]

    def _propose(self, context: Context) -> Proposal:
        self.asked.append(list(context.tokens))
        proposal = Proposal()
        for token in self.says[: context.limit]:
            row = np.zeros(self.width, np.float32)
            row[token] = self.sure
            self.steps += 1
            chosen, confidence = context.choose(row, 999)
            proposal.tokens.append(chosen)
            proposal.confidence.append(confidence)
            if not context.proceed(proposal.confidence):
                break
            self.fed.append(chosen)
        return proposal

    def forget(self, slot: int) -> None:
        self.forgotten.append(slot)

    def prepare(self, slot: int, tokens: Sequence[int]) -> None: ...

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        return len(tokens)

    def copy(self, source: int, target: int, length: int) -> None:
        self.copied = (source, target, length)

    def swap(self, one: int, other: int) -> None: ...

    def drop(self, slots: Sequence[int]) -> None: ...

    def set_threads(self, count: int) -> None: ...

    def close(self) -> None:
        self.closed = True
