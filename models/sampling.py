"""One row of logits to one token: temperature, top-k, top-p, min-p, then the Gumbel-max choice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftd.models.noise import BLOCK, Noise

Row = NDArray[np.float32]  # [vocab]


COLDEST = 1e-6  # 32 bits can't divide by much less


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


def choose(row: Row, sampling: Sampling, position: int) -> int:
    """The token y = argmax_v (log p(v) + g(seed, position, v)) of this row; a sample of p, exact."""
    best = int(row.argmax())
    if sampling.temperature <= 0.0 or sampling.top_k == 1:
        return best
    noise = Noise(sampling.seed, position, len(row))
    if sampling.top_k == 0 and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        kept = _contenders(row, best, sampling.temperature, noise)
    else:
        kept = keep(row, sampling)
    if len(kept) == 1:
        return int(kept[0])
    scores = row[kept].astype(np.float64) / sampling.temperature + noise.at(kept)
    return int(kept[scores.argmax()])


def keep(row: Row, sampling: Sampling) -> NDArray[np.int64]:
    """The tokens that top-k, top-p and min-p leave, ascending."""  # [kept]
    temperature = sampling.temperature
    top = float(row.max())
    floor = -math.inf
    if 0 < sampling.top_k < len(row):
        floor = float(np.partition(row, -sampling.top_k)[-sampling.top_k])
    if sampling.top_p < 1.0:
        floor = max(floor, _top_p_floor(row, temperature, floor, top, sampling.top_p))
    if sampling.min_p > 0.0:
        floor = max(floor, top + temperature * math.log(sampling.min_p))
    return np.flatnonzero(row >= np.float32(min(floor, top)))


def _top_p_floor(row: Row, temperature: float, floor: float, top: float, top_p: float) -> float:
    """The least logit of the smallest set of most probable tokens whose probability reaches top_p."""
    weights = np.exp((row - np.float32(top)) / np.float32(temperature))  # [vocab]
    if floor > -math.inf:
        weights[row < np.float32(floor)] = 0.0
    total = float(weights.sum(dtype=np.float64))
    # Tokens below this weight hold less than 1 - top_p together: none of them is in the set.
    head = np.flatnonzero(weights >= (1.0 - top_p) * total / len(row))
    order = head[np.argsort(-row[head], kind="stable")]
    mass = np.cumsum(weights[order], dtype=np.float64)
    last = min(int(np.searchsorted(mass, top_p * total)), len(order) - 1)
    return float(row[order[last]])


def _contenders(row: Row, best: int, temperature: float, noise: Noise) -> NDArray[np.int64]:
    """The tokens that can still win: their block's largest noise could lift them past the best."""
    score = float(row[best]) / temperature + float(noise.at(np.array([best]))[0])
    # Rounded down, so that single precision can only let in more tokens, never lose the winner.
    cut = np.nextafter(
        ((score - noise.bound) * temperature).astype(np.float32), np.float32(-np.inf)
    )  # [blocks]
    full = len(row) // BLOCK
    kept = np.flatnonzero(row[: full * BLOCK].reshape(full, BLOCK) >= cut[:full, None])
    if full * BLOCK < len(row):
        rest = np.flatnonzero(row[full * BLOCK :] >= cut[full]) + full * BLOCK
        kept = np.concatenate([kept, rest])
    return kept if len(kept) else np.array([best])


def confidence(row: Row, token: int) -> float:
    """The probability of a token at temperature 1: what a draft believes of its own choice."""
    weights = np.exp(row - row[token])
    return float(1.0 / weights.sum())


def certainty(row: Row) -> float:
    """The probability of the likeliest token at temperature 1: how sure a model is of how to go on."""
    return confidence(row, int(row.argmax()))
