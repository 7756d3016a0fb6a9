"""Random texts, and what a round asks a draft about them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from draftd.drafts.base import Choose, Context

Row = NDArray[np.float32]
CONTEXT = 96


def greedy(row: Row, _: int) -> tuple[int, float]:
    weights = np.exp(row - row.max())
    return int(row.argmax()), float(weights.max() / weights.sum())


def context(
    tokens: Sequence[int],
    limit: int = 4,
    slot: int = 0,
    choose: Choose = greedy,
    proceed: Callable[[Sequence[float]], bool] = lambda _: True,
) -> Context:
    return Context(slot, tokens, limit, choose, proceed)


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def windowed(tokens: Sequence[int], reading: int | None, limit: int = 1, slot: int = 0) -> Context:
    return Context(slot, tokens, limit, greedy, lambda _: True, reading=reading)
