"""One row of logits to one token: temperature, top-k, top-p, min-p, then the Gumbel-max choice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftd.models.groups import REGION, STRIDE, Row, first_of, tokens_of, tops_of
from draftd.models.noise import noise_of
from draftd.models.race import lead, winner

COLDEST = 1e-6  # 32 bits can't divide by much less
ROUNDING = 1e-4  # of sums of probabilities that are made of 32-bit logits
GROUPS = 128  # to look at the tokens of more takes longer than to find top-p's edge
SORTED = 1024  # tokens that are sorted sooner than looked through once more
TIE, LEAD = 0.1, 1.0  # logits: what other bits move, and a lead that they don't make up for
BLOCK = 512  # tokens whose weights are summed first: a running sum of all is slow, and rounds more

Weights = NDArray[np.float64] | NDArray[np.float32]  # of tokens, in proportion to their probabilities


@dataclass(frozen=True, slots=True)
class Sampling:
    """A request's sampling parameters; temperature 0 is greedy and ignores the rest.

    A temperature below `COLDEST` counts as 0: only a logit equal to the best one would have a chance.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)


def choose(row: Row, sampling: Sampling, position: int, tops: Row | None = None) -> int:
    """The token y = argmax_v (log p(v) + g(seed, position, v)) of this row; a sample of p, exact.

    p is what `keep` leaves. Who wins among more tokens and is one of these wins among these too, so top-p's
    edge, which takes a sort, is only looked for where the winner may be outside. `tops` is `tops_of(row)`,
    where that is known.
    """
    temperature, top_p = sampling.temperature, sampling.top_p
    if temperature <= 0.0 or sampling.top_k == 1:
        return int(row.argmax())
    if tops is None:
        tops = tops_of(row)
    best = best_of(row, tops)
    if not math.isfinite(row[best]):  # NaN, which numpy takes for the largest; or no other has a chance
        return best
    noise = noise_of(sampling.seed, position, len(row))
    row_left, floor = _top_k_min_p(row, sampling, tops)
    token = winner(row, tops, best, temperature, noise, floor)
    if token == best or top_p >= 1.0:
        return token
    if row_left is row and _surely_inside(row, tops, row[token], temperature, top_p):
        return token
    return winner(row, tops, best, temperature, noise, max(floor, _top_p(row_left, sampling, tops)))


def keep(row: Row, sampling: Sampling, tops: Row | None = None) -> NDArray[np.int64]:
    """The tokens that top-k, top-p and min-p leave, ascending; `tops` as in `choose`."""  # [kept]
    if tops is None:
        tops = tops_of(row)
    row_left, floor = _top_k_min_p(row, sampling, tops)
    if sampling.top_p < 1.0:
        floor = max(floor, _top_p(row_left, sampling, tops))
    return np.flatnonzero(row >= floor)


def best_of(row: Row, tops: Row) -> int:
    """A token of the largest logit."""
    first = first_of(int(tops.argmax()))
    return first + STRIDE * int(row[first : first + REGION : STRIDE].argmax())


def largest(row: Row, tops: Row, count: int) -> np.float32:
    """The `count`th largest logit."""
    if count <= len(tops):  # as many groups have a token at least as good as the bound: it is not below it
        at = len(tops) - count
        row = row[np.flatnonzero(row >= np.partition(tops, at)[at])]
    return np.float32(np.partition(row, len(row) - count)[len(row) - count])


def _top_k_min_p(row: Row, sampling: Sampling, tops: Row) -> tuple[Row, np.float32]:
    """The logits that top-k leaves, from which top-p is counted, and the least that it and min-p leave."""
    left, floor = row, np.float32(-np.inf)
    if 0 < sampling.top_k < len(row):
        floor = largest(row, tops, sampling.top_k)
        left = row[np.flatnonzero(row >= floor)]
    if sampling.min_p > 0.0:
        top = float(tops.max())
        least = top + sampling.temperature * math.log(sampling.min_p)
        floor = max(floor, np.float32(min(least, top)))
    return left, floor


def _top_p(left: Row, sampling: Sampling, tops: Row) -> np.float32:
    """The least logit of the smallest set of most probable tokens whose probability reaches top_p.

    `left` is what top-k leaves of the row whose `tops` are given.
    """
    temperature, top = sampling.temperature, tops.max()
    weights = _weights(left, top, temperature)
    total = float(block_sums(weights).sum())
    wanted = (sampling.top_p + ROUNDING) * total
    # Where the groups' best alone hold what is wanted, all tokens as likely hold at least that: the set ends
    # there or before. It has none below the last weight either: these hold less than 1 - top_p together.
    cut = _cut(_weights(tops, top, temperature), wanted, (1.0 - sampling.top_p) * total / len(left))
    head = np.flatnonzero(weights >= cut)
    if len(head) > SORTED:
        near = weights[head]
        head = head[near >= _cut(near, wanted, cut)]
    ordered = np.sort(left[head])[::-1]
    mass = np.cumsum(_weights(ordered, top, temperature).astype(np.float64))
    return np.float32(ordered[min(int(np.searchsorted(mass, sampling.top_p * total)), len(ordered) - 1)])


def _cut(weights: Row, wanted: float, last: float) -> float:
    """A weight, `last` at least, at which and above which these tokens' weights come to what is wanted."""
    cut = 1.0
    while cut > last:
        cut = max(cut / 4.0, last)
        if weights[weights >= cut].sum(dtype=np.float64) >= wanted:
            break
    return cut


def _surely_inside(row: Row, tops: Row, logit: np.float32, temperature: float, top_p: float) -> bool:
    """Is this one of the logits that top-p keeps? True only if a look at few tokens is enough to say so.

    It is if the better ones hold less than top_p. They share groups with few others, and what the other
    groups hold is at least their largest.
    """
    top, there = tops.max(), tops > logit
    better = np.flatnonzero(there)
    if len(better) > GROUPS:
        return False
    near = row[tokens_of(better, len(row))]
    above = float(_weights(near[near > logit], top, temperature).sum(dtype=np.float64))
    below = float(_weights(tops[~there], top, temperature).sum(dtype=np.float64))
    return above < (top_p - ROUNDING) * (above + below)


def block_sums(weights: Weights) -> NDArray[np.float64]:
    """The weights of each `BLOCK` tokens together."""  # [tokens] -> [ceil(tokens / BLOCK)]
    return np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)).astype(np.float64)


def _weights(logits: Row, top: np.float32, temperature: float) -> Row:
    """What each token's probability is in proportion to."""
    weights = logits - top
    weights *= np.float32(1.0 / temperature)
    np.exp(weights, out=weights)
    return weights


def confidence(row: Row, token: int, tops: Row | None = None) -> float:
    """About the probability of a token at temperature 1: what a draft believes of its own choice.

    Of the others only the largest of each group counts. A tenth of the work, and what it leaves out is small
    where it matters: tokens that are likely share a group of 128 only by chance.
    """
    return _share(tops_of(row) if tops is None else tops, row[token])


def steadiness(row: Row, token: int, sampling: Sampling, position: int, tops: Row) -> float:
    """How surely another copy of the model, in other bits, chooses this token as well: by its lead.

    About what was seen of Qwen2.5-Coder 1.5B in 4 bits and in 16: 0.64 of choices with a lead below 0.1
    logits were the same, 0.90 of those below 0.25, and all 1245 beyond.
    """
    noise = noise_of(sampling.seed, position, len(row)) if sampling.temperature > 0.0 else None
    distance = lead(row, tops, token, sampling.temperature, noise, LEAD)
    return 1.0 - math.exp(-distance / TIE)


def certainty(row: Row) -> float:
    """About the probability of the likeliest token at temperature 1: how sure a model is of how to go on."""
    tops = tops_of(row)
    return _share(tops, tops.max())


def _share(tops: Row, logit: np.float32) -> float:
    if logit == -np.inf:
        return 0.0
    with np.errstate(over="ignore"):  # a token that has next to no chance
        return float(1.0 / np.exp(tops - logit).sum())
