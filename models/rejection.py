"""Verification by rejection: token by token, or a block at a time; a draft hands over the laws it drew from.

Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318, for tokens; Sun et al., arXiv
2403.10444, for blocks, which accept at least as many. Both give the target's own law, whatever the draft's
is. What they need of a draft: each token drawn from the law that comes with it, and whether there is a token
at all settled before it was drawn. A token found without dice (in earlier text, say) has a one-hot law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from draftd.ipc.errors import InvalidRequest
from draftd.models.base import Rows
from draftd.models.groups import Row
from draftd.models.processors import Processors
from draftd.models.sampling import BLOCK, Sampling, Weights, best_of, block_sums, keep

Rejection = Literal["rejection", "rejection-token"]  # blocks, tokens
FEW = 8192  # tokens whose weights are in double precision


@dataclass
class Law:
    """A distribution over tokens: `scale * weights[i]` belongs to `tokens[i]`; what is not there has none."""

    weights: Weights  # [kept]
    tokens: NDArray[np.int64] | None = None  # [kept], ascending; None: all of the row
    scale: float = 1.0  # a residual's probabilities sum to less than 1

    @cached_property
    def sums(self) -> NDArray[np.float64]:
        """The weights of each `BLOCK` tokens together."""  # [ceil(kept / BLOCK)]
        return block_sums(self.weights)

    @property
    def mass(self) -> float:
        """The sum of all probabilities."""
        return float(self.sums.sum()) * self.scale

    def of(self, token: int) -> float:
        """The probability of one token."""
        if self.tokens is None:
            return float(self.weights[token]) * self.scale if token < len(self.weights) else 0.0
        index = int(np.searchsorted(self.tokens, token))
        there = index < len(self.tokens) and int(self.tokens[index]) == token
        return float(self.weights[index]) * self.scale if there else 0.0

    def excess(self, other: Law, reach: float = 1.0) -> Law:
        """What `reach` times this law has over the other: max(0, reach p - q), not normalised."""
        weights = self.weights * (reach * self.scale / other.scale)  # in the other's units
        if self.tokens is None and other.tokens is None and len(other.weights) <= len(weights):
            weights[: len(other.weights)] -= other.weights
        else:
            row = np.zeros(max(self._width, other._width), weights.dtype)
            row[slice(len(other.weights)) if other.tokens is None else other.tokens] = other.weights
            weights -= row[: len(weights)] if self.tokens is None else row[self.tokens]
        return Law(np.maximum(weights, 0.0, out=weights), self.tokens, other.scale)

    @property
    def _width(self) -> int:
        return len(self.weights) if self.tokens is None else int(self.tokens[-1]) + 1


def law_of(row: Row, sampling: Sampling, tops: Row | None = None) -> Law:
    """What a row is sampled from; greedy: its first maximum. `tops` is `tops_of(row)`, where that is known.

    In double precision where few tokens are left. Of many it takes three times as long, to round a hundred
    times finer than the logits themselves are.
    """
    if sampling.temperature <= 0.0:
        return one_hot(int(row.argmax()))
    best = int(row.argmax()) if tops is None else best_of(row, tops)
    if not np.isfinite(row[best]):
        return one_hot(best)
    tokens = None
    if sampling.top_k or sampling.top_p < 1.0 or sampling.min_p > 0.0:
        tokens = keep(row, sampling, tops)
    left = row if tokens is None else row[tokens]
    weights: Weights = np.subtract(left, row[best], dtype=np.float64 if len(left) <= FEW else np.float32)
    weights *= 1.0 / sampling.temperature
    np.exp(weights, out=weights)
    law = Law(weights, tokens)
    law.scale = 1.0 / law.mass
    return law


def one_hot(token: int) -> Law:
    """The law of a token that no dice chose."""
    return Law(np.ones(1), np.array([token], np.int64))


class Dice:
    """Random choices, fresh ones each time: without a seed, from the system's entropy.

    Choices from a request's seed would not do. Asked again with that seed it may be offered its first answer
    as a draft, which the same choices made, and accepting must not depend on what made the draft.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = np.random.default_rng(seed)

    def accept(self, chance: float) -> bool:
        return self._random.random() < chance

    def draw(self, law: Law) -> int:
        """A token of a law, which need not be normalised."""
        mass = np.cumsum(law.sums)
        left = self._random.random() * mass[-1]
        block = int(np.searchsorted(mass, left, side="right"))
        weights = law.weights[block * BLOCK : (block + 1) * BLOCK]
        within = np.cumsum(weights, dtype=np.float64) + (mass[block - 1] if block else 0.0)
        place = int(np.searchsorted(within, left, side="right"))
        if place == len(weights):  # the two sums differ by rounding
            place = int(np.flatnonzero(weights)[-1])
        index = block * BLOCK + place
        return index if law.tokens is None else int(law.tokens[index])


# the target's law behind the first n drafted tokens, None where it can't go on; asked once for each n
Laws = Callable[[int], Law | None]


def verify_tokens(p: Laws, q: Sequence[Law], drafted: Sequence[int], dice: Dice) -> list[int]:
    """Accept each with min(1, p(x)/q(x)); the first refused gives way to a sample of max(0, p - q)."""
    for i, token in enumerate(drafted):
        here = p(i)
        if here is None:
            return list(drafted[:i])
        if not dice.accept(min(1.0, here.of(token) / q[i].of(token))):
            return [*drafted[:i], dice.draw(_or(here.excess(q[i]), here))]
    last = p(len(drafted))
    return [*drafted, *([] if last is None else [dice.draw(last)])]


def verify_block(p: Laws, q: Sequence[Law], drafted: Sequence[int], dice: Dice) -> list[int]:
    """Accept the longest block of which the target is sure enough as a whole (Sun et al., algorithm 2).

    `reach` is their p_i: what of the drafted prefix's probability can still be accepted.
    """
    accepted, reach = 0, 1.0
    first = here = last = p(0)
    for i, token in enumerate(drafted, 1):
        if here is None:
            break  # as if no more had been drafted
        reach = min(1.0, reach * here.of(token) / q[i - 1].of(token))
        if reach == 0.0:
            break  # it stays so, and no longer block can be accepted
        here = p(i)
        if here is None or i == len(drafted):
            rest, chance = here, reach
        else:
            rest = here.excess(q[i], reach)
            mass = rest.mass
            chance = mass / (mass + 1.0 - reach) if mass > 0.0 else 0.0
        if dice.accept(chance):
            accepted, last = i, rest
    if drafted and not accepted and first is not None:
        last = _or(first.excess(q[0]), first)
    return [*drafted[:accepted], *([] if last is None else [dice.draw(last)])]


def _or(residual: Law, p: Law) -> Law:
    """The residual; p where it is empty, which then is q but for rounding."""
    return residual if residual.weights.any() else p


def verify_rejection(
    rows: Rows,
    drafted: Sequence[int],
    laws: Sequence[Law],
    how: Rejection,
    sampling: Sampling,
    dice: Dice,
    processors: Processors | None = None,
) -> list[int]:
    """Accepted drafts, then the correction or the bonus token; together they follow the target's law.

    `rows` is [drafted + 1, vocab]: row i is the target's distribution after i drafted tokens; the processors
    change the rows that are looked at. `laws[i]` is what drafted[i] was drawn from.
    """

    def p(i: int) -> Law | None:
        if processors is not None:
            try:
                processors.apply(rows[i], drafted[:i])
            except InvalidRequest:  # its grammar can't go on: the next round finds that out, if there is one
                if i == 0:
                    raise
                return None
        return law_of(rows[i], sampling)

    return (verify_block if how == "rejection" else verify_tokens)(p, laws, drafted, dice)
