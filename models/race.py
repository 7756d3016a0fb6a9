"""Who wins a row's race: the largest logit / temperature + noise, looked for where it can be.

A group's largest noise is known without its tokens' (models/noise.py), so the tokens that carry it give a
score that the winner must reach; the likeliest token gives another. No token of a group scores more than
the group's largest logit would with its largest noise, which leaves a few groups, and few tokens of these.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from draftd.models.groups import Row, group_of, tokens_of
from draftd.models.noise import Noise

MARGIN = 1e-9  # of scores: more than rounding moves them


def winner(row: Row, tops: Row, best: int, temperature: float, noise: Noise, floor: np.float32) -> int:
    """The token with the largest row / temperature + noise of those at or above `floor`; `best` is one."""
    heads = row[noise.heads]
    scores = heads / np.float64(temperature) + noise.heads_noise
    if floor > -np.inf:
        scores[heads < floor] = -np.inf
    alone = float(row[best]) / temperature + noise.about(best)
    reached = max(alone, float(scores.max(initial=-np.inf)))
    tokens = _contenders(row, tops, temperature, noise, reached - MARGIN, floor)
    if len(tokens) < 2:  # none: rounding, or a row that holds no numbers
        return int(tokens[0]) if len(tokens) else best
    tokens.sort()
    return int(tokens[(row[tokens] / np.float64(temperature) + noise.at(tokens)).argmax()])


def lead(row: Row, tops: Row, token: int, temperature: float, noise: Noise | None, most: float) -> float:
    """By how many logits the winner was ahead of the next, `most` at most; without noise: of the others.

    What would have come before it was not to be had, so it is passed over.
    """
    if noise is None:
        tokens = tokens_of(np.flatnonzero(tops >= row[token] - np.float32(most)), len(row))
        behind = row[token] - row[tokens[tokens != token]].astype(np.float64)
    else:
        score = float(row[token]) / temperature + noise.about(token)
        tokens = _contenders(row, tops, temperature, noise, score - most / temperature, np.float32(-np.inf))
        tokens = np.sort(tokens[tokens != token])
        behind = temperature * (score - row[tokens] / np.float64(temperature) - noise.at(tokens))
    return float(behind[behind >= 0.0].min(initial=most))


def _contenders(
    row: Row, tops: Row, temperature: float, noise: Noise, reached: float, floor: np.float32
) -> NDArray[np.int64]:
    """The tokens at or above `floor` that may score `reached`."""
    groups = np.flatnonzero(tops / np.float64(temperature) + noise.bound >= reached)
    tokens = tokens_of(groups, len(row))
    logits, bound = row[tokens], noise.bound[group_of(tokens)]
    return tokens[(logits >= floor) & (logits / np.float64(temperature) + bound >= reached)]
