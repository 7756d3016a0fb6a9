"""Log-probabilities of emitted tokens and of the likeliest others, from the target's rows as computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from draftd.models.groups import Row, tops_of
from draftd.models.sampling import largest

LEAST = -9999.0  # what stands for less than can be told, minus infinity included


@dataclass(frozen=True, slots=True)
class Logprob:
    """An emitted token's log-probability, and the likeliest tokens of its row, the best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token, log-probability)


def logprob(row: Row, token: int, count: int) -> Logprob:
    """The log-softmax of a row at a token and at its `count` likeliest."""
    total = log_sum(row)
    best = likeliest(row, count)
    top = tuple((int(each), _least(float(row[each]) - total)) for each in best)
    return Logprob(token, _least(float(row[token]) - total), top)


def log_sum(row: Row) -> float:
    """log(sum(exp(row)))."""
    top = float(row.max())
    return top + float(np.log(np.exp(row - np.float32(top)).sum(dtype=np.float64)))


def likeliest(row: Row, count: int) -> NDArray[np.int64]:
    """The `count` tokens of the largest logits, the best first, of equals the lower id first."""  # [count]
    if count == 0:
        return np.empty(0, np.int64)
    found = np.flatnonzero(row >= largest(row, tops_of(row), min(count, len(row))))
    return found[np.argsort(-row[found], kind="stable")[:count]]


def _least(value: float) -> float:
    return max(value, LEAST)
