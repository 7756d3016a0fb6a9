"""What changes a row before temperature: penalties, logit bias, the grammar's mask; each row by its prefix.

Only accepted tokens are recorded. A drafted token counts for the rows behind it and is forgotten with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftd.models.grammar import Matcher

Row = NDArray[np.float32]  # [vocab]


@dataclass(frozen=True, slots=True)
class Penalties:
    """A request's penalties and biases; the defaults change nothing."""

    # of prompt and output: divides positive logits, multiplies others (Keskar et al., arXiv 1909.05858, 4.1)
    repetition: float = 1.0
    presence: float = 0.0  # subtracted once from a token of the output
    frequency: float = 0.0  # subtracted for each time that a token is in the output
    bias: tuple[tuple[int, float], ...] = ()  # (token, added to its logit)


class Processors:
    """One request's row processors, with what was accepted so far."""

    def __init__(self, penalties: Penalties, prompt: Sequence[int], matcher: Matcher | None = None) -> None:
        self._penalties = penalties
        self._matcher = matcher
        self._idle = penalties == Penalties()
        self._prompt = frozenset(prompt) if penalties.repetition != 1.0 else frozenset()
        self._output: Counter[int] = Counter()

    def accept(self, tokens: Sequence[int]) -> None:
        """Record accepted tokens of the output."""
        if not self._idle:
            self._output.update(tokens)
        if self._matcher is not None:
            self._matcher.accept(tokens)

    @property
    def ended(self) -> bool:
        """Whether the grammar is complete: the answer ends here."""
        return self._matcher is not None and self._matcher.ended

    def fitting(self, drafted: Sequence[int]) -> int:
        """How many leading drafted tokens the grammar admits."""
        return len(drafted) if self._matcher is None else self._matcher.fitting(drafted)

    def apply(self, row: Row, drafted: Sequence[int] = ()) -> None:
        """Change a row in place, as it stands behind the accepted tokens and then `drafted`."""
        if not self._idle:
            self._penalize(row, drafted)
        if self._matcher is not None:
            self._matcher.mask(row, drafted)

    def _penalize(self, row: Row, drafted: Sequence[int]) -> None:
        penalties = self._penalties
        counts = self._output + Counter(drafted) if drafted else self._output
        if penalties.repetition != 1.0:
            tokens = _inside(self._prompt.union(counts), row)
            logits = row[tokens]
            row[tokens] = np.where(logits > 0, logits / penalties.repetition, logits * penalties.repetition)
        if penalties.presence or penalties.frequency:
            tokens = _inside(counts, row)
            times = np.array([counts[int(token)] for token in tokens], np.float32)
            row[tokens] -= penalties.presence + penalties.frequency * times
        for token, bias in penalties.bias:
            if token < len(row):
                row[token] += np.float32(bias)


def _inside(tokens: frozenset[int] | Counter[int], row: Row) -> NDArray[np.int64]:
    """The tokens that a row has: a draft's may be narrower than the target's."""
    found = np.fromiter(tokens, np.int64, len(tokens))
    return found[found < len(row)]
