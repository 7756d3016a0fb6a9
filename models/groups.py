"""A row of logits in groups of 128, so that most of a sampler's work is done on one number a group.

Token v belongs to group 1024 * (v // 131072) + v % 1024: groups are strided, since the largest of each is
then found by comparing long runs; and they do not depend on the vocabulary's size, of which draft and target
may have different ones.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]  # [vocab]
Ids = TypeVar("Ids", int, NDArray[np.int64])  # one or many

SIZE = 128  # tokens of a group; the last ones' may lie behind the vocabulary's end
STRIDE = 1024  # between two tokens of a group
REGION = SIZE * STRIDE
_PLACES = np.arange(SIZE) * STRIDE  # of a group's tokens, from its first on


def count_groups(vocab: int) -> int:
    """How many groups have a token of this vocabulary."""
    return vocab // REGION * STRIDE + min(STRIDE, vocab % REGION)


def group_of(tokens: Ids) -> Ids:
    """Each token's group."""  # [n] -> [n]
    return (tokens >> 17 << 10) + (tokens & STRIDE - 1)


def first_of(groups: Ids) -> Ids:
    """Each group's first token; the others follow at distances of STRIDE."""  # [n] -> [n]
    return (groups >> 10 << 17) + (groups & STRIDE - 1)


def tokens_of(groups: NDArray[np.int64], vocab: int) -> NDArray[np.int64]:
    """All tokens of these groups that the vocabulary has."""  # [n] -> [at most 128 n]
    found = (first_of(groups)[:, None] + _PLACES).reshape(-1)
    return found[found < vocab]


def tops_of(row: Row) -> Row:
    """The largest logit of each group."""  # [vocab] -> [groups]
    regions = len(row) // REGION
    tops: Row = row[: regions * REGION].reshape(regions, SIZE, STRIDE).max(axis=1).reshape(-1)
    rest = row[regions * REGION :]
    if not len(rest):
        return tops
    lines = len(rest) // STRIDE
    last = rest[: lines * STRIDE].reshape(lines, STRIDE).max(axis=0, initial=-np.inf)
    rest = rest[lines * STRIDE :]
    last[: len(rest)] = np.maximum(last[: len(rest)], rest)
    return np.concatenate((tops, last if lines else last[: len(rest)]))
