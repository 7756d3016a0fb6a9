"""What every draft source offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")
# (row of logits [vocab], absolute position of the token it predicts) -> (token, its probability)
Choose = Callable[[NDArray[np.float32], int], tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Context:
    """One request as a draft sees it: the whole accepted sequence, and how its next token is picked."""

    slot: int
    tokens: Sequence[int]  # prompt and accepted output, the newest token last
    limit: int  # draft at most this many
    choose: Choose  # the request's own sampler, sharing the target's noise
    proceed: Callable[[Sequence[float]], bool]  # confidences so far, the newest last: draft another?
    # the client scope: what one scope said is never proposed to another; None: its own text is all there is
    scope: str | None = ""
    reading: int | None = None  # of the tokens that are not cached read only so many, the newest; None: all


@dataclass(slots=True)
class Proposal:
    """Drafted token ids, with the draft's own probability of each."""

    tokens: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    drawn: bool = False  # all that `choose` gave and nothing else, whatever they turned out to be


class Draft(Protocol):
    """A source of proposals; it keeps the common prefix of what it saw in a slot and feeds the rest."""

    @property
    def same_model(self) -> bool:
        """Is it the target in other bits? It then errs where two tokens are nearly alike, and only there."""
        ...

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """One proposal a context, all requests of a round together so that they share each pass."""
        ...

    def forget(self, slot: int) -> None:
        """Drop what is cached for a slot."""
        ...

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        """Cache a sequence ahead of the request that will draft from it."""
        ...

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        """How many of a sequence's tokens, counted from its end, are still to be read for the slot."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Make what is cached for slot `target` the first `length` tokens of what is for `source`."""
        ...

    def swap(self, one: int, other: int) -> None:
        """Exchange what is cached for two slots; what can't be moved is forgotten."""
        ...

    def drop(self, slots: Sequence[int]) -> None:
        """Forget these slots and give their memory back to the system, as far as that can be done."""
        ...

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next proposal on."""
        ...

    def close(self) -> None:
        """Free the draft's memory."""
        ...


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens are equal; comparing slices, halving each time, is faster than a loop."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # all before `low` are equal; some token before `high` is not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def exchange(held: dict[int, Value], one: int, other: int) -> None:
    """Let two slots' entries, where they have any, change places."""
    values = [(slot, held.pop(old)) for slot, old in ((other, one), (one, other)) if old in held]
    held.update(values)
