"""How surely another copy of a model chooses the same token, against brute force over the whole row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftd.daemon.drafting import Drafted, Drafting
from draftd.daemon.plan import Plan
from draftd.daemon.request import Verify
from draftd.models.groups import tops_of
from draftd.models.noise import noise_of
from draftd.models.sampling import LEAD, TIE, Sampling, choose, confidence, steadiness
from tests.daemon.traffic import request
from tests.fakes import TableDraft, TableTarget


@given(
    st.sampled_from([2, 300, 5000, 140_000]),
    st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    st.sampled_from([0, 3]),
    st.integers(0, 2**32 - 1),
)
def test_it_grows_with_the_lead_over_the_next(vocab: int, temperature: float, top_k: int, seed: int) -> None:
    row = np.random.default_rng(seed).standard_normal(vocab).astype(np.float32) * np.float32(3.0)
    sampling = Sampling(temperature, top_k=top_k, seed=seed)
    tops = tops_of(row)
    token = choose(row, sampling, 7, tops)
    scores = row.astype(np.float64)
    if temperature:
        scores += temperature * noise_of(seed, 7, vocab).at(np.arange(vocab))
    behind = scores[token] - np.delete(scores, token)
    wanted = min(LEAD, float(behind[behind >= 0.0].min(initial=LEAD)))
    found = steadiness(row, token, sampling, 7, tops)
    assert found == pytest.approx(1.0 - math.exp(-wanted / TIE), abs=1e-4)


def test_of_two_that_are_alike_neither_is_steady() -> None:
    row = np.zeros(300, np.float32)
    row[[5, 200]] = 8.0
    assert steadiness(row, 5, Sampling(0.0), 1, tops_of(row)) == 0.0
    row[5] += 2.0
    assert steadiness(row, 5, Sampling(0.0), 1, tops_of(row)) > 0.9999


@pytest.mark.parametrize("verify", ["coupled", "rejection"])
def test_a_draft_that_is_the_target_is_believed_by_it(verify: Verify) -> None:
    """Where dice choose, a lead says nothing."""
    draft = TableDraft(TableTarget())
    row = TableTarget().row([5, 1])
    for same in (False, True):
        draft.same_model = same
        one = request(0, [5, 1], 9, verify=verify)
        token, believed = Drafting(draft)._context(one, Drafted(Plan("model", 4))).choose(row.copy(), 2)
        steady = steadiness(row, token, one.sampling, 2, tops_of(row))
        assert believed == (steady if same and verify == "coupled" else confidence(row, token))
