"""Who wins a row's race: the largest logit / temperature + noise, looked for where it can be.

A block's largest noise is known without its tokens' (models/noise.py), so the tokens that carry it give a
score that the winner must reach. All but a few blocks have no noise beyond `USUAL`: one comparison of the
row leaves the tokens that reach it with no more, and only in those few blocks each has a bound of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftd.models.noise import BLOCK, USUAL, Noise

Row = NDArray[np.float32]  # [vocab]
MARGIN = 1e-9  # of scores: more than rounding moves them


def winner(row: Row, best: int, temperature: float, noise: Noise, floor: np.float32) -> int:
    """The token with the largest row / temperature + noise of those at or above `floor`; `best` is one."""
    heads = row[noise.heads]
    scores = heads.astype(np.float64) / temperature + noise.bound[: len(heads)]  # [blocks]
    if floor > -np.inf:
        scores[heads < floor] = -np.inf
    reached = float(scores.max(initial=-np.inf))
    if reached == -np.inf:  # few tokens are left, and none has its block's largest noise
        reached = float(row[best]) / temperature + float(noise.at(np.array([best]))[0])
    tokens = _contenders(row, temperature, noise, reached - MARGIN, floor)
    if not len(tokens):
        return best
    tokens.sort()
    return int(tokens[(row[tokens].astype(np.float64) / temperature + noise.at(tokens)).argmax()])


def _contenders(
    row: Row, temperature: float, noise: Noise, reached: float, floor: np.float32
) -> NDArray[np.int64]:
    """The tokens at or above `floor` that may score `reached`; some of them twice."""
    found: list[NDArray[np.int64]] = [
        np.flatnonzero(row >= max(_down((reached - USUAL) * temperature), floor))
    ]
    blocks = noise.loud
    if len(blocks):
        cuts = np.maximum(_down((reached - noise.bound[blocks]) * temperature), floor)
        full = row[: len(row) // BLOCK * BLOCK].reshape(-1, BLOCK)
        hits = np.flatnonzero(full[blocks] >= cuts[:, None])
        found.append(blocks[hits // BLOCK] * BLOCK + hits % BLOCK)
    if rest := len(row) % BLOCK:
        rest = len(row) - rest
        found.append(np.flatnonzero(row[rest:] >= floor) + rest)
    return np.concatenate(found)


def _down(cut: Any) -> Any:
    """In single precision, rounded so that it only lets in more tokens."""
    return np.nextafter(np.asarray(cut, np.float32), np.float32(-np.inf))
