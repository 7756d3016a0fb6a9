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
        known = sorted(set(prompt)) if penalties.repetition != 1.0 else []
        self._places = {token: place for place, token in enumerate(known)}  # in the next two
        self._tokens = np.array(known, np.int64)  # whose logits change: the output's, perhaps the prompt's
        self._times = np.zeros(len(known), np.float32)  # how often each is in the output

    def accept(self, tokens: Sequence[int]) -> None:
        """Record accepted tokens of the output."""
        if not self._idle:
            self._tokens, self._times = self._behind(tokens)
            for token in tokens:
                self._places.setdefault(token, len(self._places))
        if self._matcher is not None:
            self._matcher.accept(tokens)

    @property
    def ended(self) -> bool:
        """Whether the grammar is complete: the answer ends here."""
        return self._matcher is not None and self._matcher.ended

    def fitting(self, drafted: Sequence[int]) -> int:
        """How many leading drafted tokens the grammar admits, up to its end."""
        return len(drafted) if self._matcher is None else self._matcher.fitting(drafted)

    def ends(self, drafted: Sequence[int]) -> bool:
        """Whether the grammar admits nothing behind drafted tokens."""
        return self._matcher is not None and self._matcher.ends(drafted)

    def apply(self, row: Row, drafted: Sequence[int] = ()) -> None:
        """Change a row in place, as it stands behind the accepted tokens and then `drafted`.

        InvalidRequest if the grammar can't go on there.
        """
        if not self._idle:
            self._penalize(row, drafted)
        if self._matcher is not None:
            self._matcher.mask(row, drafted)

    def _penalize(self, row: Row, drafted: Sequence[int]) -> None:
        penalties = self._penalties
        tokens, times = self._behind(drafted)
        inside = tokens < len(row)  # a draft's row may be narrower than the target's
        tokens, times = tokens[inside], times[inside]
        if penalties.repetition != 1.0:
            logits = row[tokens]
            row[tokens] = np.where(logits > 0, logits / penalties.repetition, logits * penalties.repetition)
        if penalties.presence or penalties.frequency:
            row[tokens] -= np.where(times > 0, penalties.presence + penalties.frequency * times, 0.0)
        for token, bias in penalties.bias:
            if token < len(row):
                row[token] += np.float32(bias)

    def _behind(self, more: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `_tokens` and `_times` are behind more tokens of the output; new ones come last, in order."""
        if not more:
            return self._tokens, self._times
        times, new = self._times.copy(), Counter[int]()
        for token in more:
            if (place := self._places.get(token)) is None:
                new[token] += 1
            else:
                times[place] += 1.0
        if not new:
            return self._tokens, times
        return np.append(self._tokens, list(new)), np.append(times, np.array(list(new.values()), np.float32))
