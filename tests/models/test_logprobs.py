"""Log-probabilities against the plain formula."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.models.logprobs import LEAST, likeliest, logprob


@given(
    seed=st.integers(0, 1000),
    vocab=st.sampled_from([1, 8, 100, 272, 5000]),
    count=st.sampled_from([0, 1, 3, 20]),
    distinct=st.sampled_from([2, 1000]),
)
@settings(max_examples=200)
def test_as_a_sort_of_the_log_softmax_gives_them(seed: int, vocab: int, count: int, distinct: int) -> None:
    random = np.random.default_rng(seed)
    row = (random.integers(0, distinct, vocab) * (20 / distinct)).astype(np.float32)  # with ties
    exact = row.astype(np.float64) - row.max()
    exact -= np.log(np.exp(exact).sum())
    order = np.argsort(-exact, kind="stable")[:count]
    token = int(random.integers(vocab))
    told = logprob(row, token, count)
    assert [token for token, _ in told.top] == likeliest(row, count).tolist() == order.tolist()
    np.testing.assert_allclose([value for _, value in told.top], exact[order], atol=1e-5)
    assert abs(told.logprob - exact[token]) < 1e-5


def test_a_token_that_can_not_be_has_a_finite_value() -> None:
    assert logprob(np.array([0.0, -np.inf], np.float32), 1, 0).logprob == LEAST
