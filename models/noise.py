"""Shared Gumbel noise: a pure function of (seed, position, token), cheap to bound over a whole row.

Gumbel-max sampling as an exponential race: with independent E_v ~ Exp(1), argmin E_v / p_v is a sample
of p, and g_v = -log E_v is standard Gumbel noise. Tokens come in groups of 128 (models/groups.py). The least
E of a group is Exp(1) / 128, its place is uniform, and by the memorylessness of the exponential every other E
of the group is that minimum plus an Exp(1) of its own. So the largest noise of each group is known from one
hash, and a row of 152k tokens is searched exactly while noise is computed for a handful of tokens only.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from draftd.models.groups import SIZE, STRIDE, count_groups, first_of, group_of

_MASK = (1 << 64) - 1
_WEYL = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), on one integer."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _hashes(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same finalizer over an array of counters: SplitMix64's stream with random access."""
    x = counters * np.uint64(_WEYL) + np.uint64(key)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _exponentials(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Exp(1) variates from the upper 53 bits of each hash."""
    uniform: NDArray[np.float64] = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(uniform)


class Noise:
    """The Gumbel noise of one position of one request."""

    def __init__(self, seed: int, position: int, vocab: int) -> None:
        key = _mix((_mix((seed + _WEYL) & _MASK) + position * _WEYL) & _MASK)
        self._token_key = _mix(key ^ 0xA5A5A5A5A5A5A5A5)
        first = _first_tokens(vocab)
        hashes = _hashes(key, np.arange(len(first), dtype=np.uint64))
        # The seven lowest bits place the minimum and the upper 53 size it: they do not overlap.
        self._winner = first + (hashes & np.uint64(SIZE - 1)).view(np.int64) * STRIDE  # [groups]
        self._least = _exponentials(hashes) / SIZE  # [groups]
        self.bound: NDArray[np.float64] = -np.log(self._least)  # [groups], the largest noise of each group
        # The tokens that have it, and their noise: none has where it would lie behind the vocabulary's end.
        self.heads = np.minimum(self._winner, vocab - 1)
        self.heads_noise = np.where(self._winner < vocab, self.bound, -np.inf)

    def about(self, token: int) -> float:
        """The noise of one token, to within rounding."""
        group = group_of(token)
        least = float(self._least[group])
        if token != self._winner[group]:
            least -= math.log(((_mix(token * _WEYL + self._token_key & _MASK) >> 11) + 0.5) * 2.0**-53)
        return -math.log(least)

    def at(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """The noise of the given tokens."""  # [n] -> [n]
        group = group_of(tokens)
        own = _exponentials(_hashes(self._token_key, tokens.view(np.uint64)))
        own[tokens == self._winner[group]] = 0.0
        own += self._least[group]
        return -np.log(own)


@lru_cache(maxsize=4)
def _first_tokens(vocab: int) -> NDArray[np.int64]:
    return first_of(np.arange(count_groups(vocab)))


noise_of = lru_cache(maxsize=64)(Noise)  # a draft's choice and its check want the same
