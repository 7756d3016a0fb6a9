"""Verification by coupling: what the target says at each drafted position, up to the first disagreement.

Daliri, Musco and Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding" (arXiv
2408.07978): draft and target choose with the same noise, so a draft is checked by equality.
"""

from __future__ import annotations

from collections.abc import Sequence

from draftd.ipc.errors import InvalidRequest
from draftd.models.base import Rows
from draftd.models.processors import Processors
from draftd.models.sampling import Sampling, choose


def verify(
    rows: Rows,
    drafted: Sequence[int],
    sampling: Sampling,
    position: int,
    processors: Processors | None = None,
) -> list[int]:
    """The target's own tokens from `position` on: accepted drafts, then the correction or the bonus token.

    `rows` is [drafted + 1, vocab]: row i is the target's distribution after i drafted tokens; the processors
    change the rows that are looked at.
    """
    tokens: list[int] = []
    for i, row in enumerate(rows):
        if processors is not None:
            try:
                processors.apply(row, drafted[:i])
            except InvalidRequest:  # its grammar can't go on: the next round finds that out, if there is one
                if not tokens:
                    raise
                break
        tokens.append(choose(row, sampling, position + i))
        if i == len(drafted) or drafted[i] != tokens[i]:
            break
    return tokens
