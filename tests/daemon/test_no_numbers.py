"""A model whose logits are no numbers: the request ends with an error, and nobody else hears of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from draftd.daemon.control import Mode
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request, Verify
from draftd.ipc.errors import EngineFailed
from draftd.models.sampling import Sampling
from tests.daemon.test_beams import search
from tests.daemon.test_engine import request
from tests.daemon.test_engine_ends import finished
from tests.fakes import TableDraft, TableTarget

LOST = [7, 7, 1]
GOOD = 6  # tokens of a text that begins as LOST does, behind which there are numbers


class NoNumbers(TableTarget):
    """Gives no numbers, or of one token none, in a text that begins with two sevens."""

    def __init__(self, broken: Sequence[int]) -> None:
        super().__init__()
        self.broken = list(broken)

    def row(self, tokens: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        row = super().row(tokens)
        if list(tokens[:2]) == LOST[:2] and len(tokens) >= GOOD:
            row[self.broken] = np.nan
        return row


def mate() -> Request:
    return request(1, [1, 2], 20, Sampling(1.0, seed=2), mode="off")


@pytest.mark.parametrize("broken", [range(8), [5]], ids=["all", "one"])
@pytest.mark.parametrize("mode", ["off", ("model", 4)], ids=str)
@pytest.mark.parametrize("verify", ["coupled", "rejection", "rejection-token"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(1.0, seed=1),
        Sampling(1.0, top_k=2),
        Sampling(1.0, top_p=0.7),
        Sampling(1.0, min_p=0.1),
    ],
    ids=str,
)
def test_a_request_whose_rows_are_no_numbers_ends_alone(
    sampling: Sampling, verify: Verify, mode: Mode, broken: Sequence[int]
) -> None:
    engine = Engine(NoNumbers(broken), Drafting(TableDraft(TableTarget(seed=1))))
    lost = request(0, LOST, 20, sampling, mode=mode, verify=verify)
    other, alone = mate(), mate()
    ends = finished(engine, lost, other)
    assert [(each.request, each.finish) for each in ends] == [(lost, "error"), (other, "length")]
    assert isinstance(ends[0].error, EngineFailed)
    assert "are not numbers" in str(ends[0].error)
    assert len(lost.tokens) <= GOOD
    assert engine.shared(request(2, LOST, 1, sampling)) == 0, "what was computed for it is not used again"
    finished(Engine(TableTarget()), alone)
    assert other.tokens == alone.tokens


@pytest.mark.parametrize("broken", [range(8), [5]], ids=["all", "one"])
def test_a_search_whose_rows_are_no_numbers_ends_alone(broken: Sequence[int]) -> None:
    engine = Engine(NoNumbers(broken))
    lost, other, alone = search(0, LOST, 3, 20, frozenset()), mate(), mate()
    ends = finished(engine, lost, other)
    assert [(each.request, each.finish) for each in ends] == [(lost, "error"), (other, "length")]
    assert len(engine.scheduler.places.free) == 4, "all slots are given back"
    finished(Engine(TableTarget()), alone)
    assert other.tokens == alone.tokens
