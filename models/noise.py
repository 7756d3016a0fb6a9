"""Shared Gumbel noise: a pure function of (seed, position, token), cheap to bound over a whole row.

Gumbel-max sampling as an exponential race: with independent E_v ~ Exp(1), argmin E_v / p_v is a sample
of p, and g_v = -log E_v is standard Gumbel noise. Tokens come in groups of 128 (models/groups.py). The least
E of a group is Exp(1) / 128, its place is uniform, and by the memorylessness of the exponential every other E
of the group is that minimum plus an Exp(1) of its own. So the largest noise of each group is known from one
hash, and a row of 152k tokens is searched exactly while noise is computed for a handful of tokens only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from draftd.models.groups import SIZE, STRIDE, count_groups, first_of, group_of

SPAN = 8  # positions whose noise is made at once
_MASK = (1 << 64) - 1
_WEYL = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), on one integer."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _hashes(key: np.uint64 | NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same finalizer over an array of counters: SplitMix64's stream with random access."""
    x = counters * np.uint64(_WEYL) + key
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


@dataclass(frozen=True, slots=True)
class Noise:
    """The Gumbel noise of one position of one request."""

    token_key: int
    winner: NDArray[np.int64]  # [groups], the token with the least E of each group
    least: NDArray[np.float64]  # [groups], that E
    bound: NDArray[np.float64]  # [groups], the largest noise of each group
    # The tokens that have it, and their noise: none has where it would lie behind the vocabulary's end.
    heads: NDArray[np.int64]  # [groups]
    heads_noise: NDArray[np.float64]  # [groups]

    def about(self, token: int) -> float:
        """The noise of one token, to within rounding."""
        group = group_of(token)
        least = float(self.least[group])
        if token != self.winner[group]:
            least -= math.log(((_mix(token * _WEYL + self.token_key & _MASK) >> 11) + 0.5) * 2.0**-53)
        return -math.log(least)

    def at(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """The noise of the given tokens."""  # [n] -> [n]
        group = group_of(tokens)
        own = _exponentials(_hashes(np.uint64(self.token_key), tokens.view(np.uint64)))
        own[tokens == self.winner[group]] = 0.0
        own += self.least[group]
        return -np.log(own)


def noise_of(seed: int, position: int, vocab: int) -> Noise:
    """The noise of a position of a request with this seed, for the tokens below `vocab`."""
    return _noises(seed, position // SPAN, vocab)[position % SPAN]


@lru_cache(maxsize=16)  # a draft's choice and its check want the same
def _noises(seed: int, span: int, vocab: int) -> list[Noise]:
    """Those of `SPAN` positions, each in little more than half the time that it takes alone."""
    first, counters = _first_tokens(vocab)
    positions = range(span * SPAN, (span + 1) * SPAN)
    keys = [_mix((_mix((seed + _WEYL) & _MASK) + position * _WEYL) & _MASK) for position in positions]
    hashes = _hashes(np.array(keys, np.uint64)[:, None], counters)  # [SPAN, groups]
    # The seven lowest bits place the minimum and the upper 53 size it: they do not overlap.
    winner = first + (hashes & np.uint64(SIZE - 1)).view(np.int64) * STRIDE
    least = _exponentials(hashes) / SIZE
    bound = -np.log(least)
    heads = np.minimum(winner, vocab - 1)
    heads_noise = np.where(winner < vocab, bound, -np.inf)
    token_keys = [_mix(key ^ 0xA5A5A5A5A5A5A5A5) for key in keys]
    return list(map(Noise, token_keys, winner, least, bound, heads, heads_noise))


@lru_cache(maxsize=4)
def _first_tokens(vocab: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Each group's first token, and the groups' numbers."""
    groups = np.arange(count_groups(vocab))
    return first_of(groups), groups.view(np.uint64)
