"""Row processors against their definitions, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling, choose

tokens = st.lists(st.integers(0, 9), max_size=12)


@given(
    seed=st.integers(0, 1000),
    prompt=tokens,
    output=tokens,
    drafted=tokens,
    repetition=st.sampled_from([1.0, 0.5, 1.3]),
    presence=st.sampled_from([0.0, 0.6, -0.6]),
    frequency=st.sampled_from([0.0, 0.2]),
    bias=st.sampled_from([(), ((2, 1.5), (7, -100.0), (99, 1.0))]),
)
def test_each_token_gets_what_the_definition_says(
    seed: int,
    prompt: list[int],
    output: list[int],
    drafted: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: tuple[tuple[int, float], ...],
) -> None:
    row = np.random.default_rng(seed).standard_normal(8).astype(np.float32)  # narrower than the tokens' ids
    expected = row.astype(np.float64)
    said = output + drafted
    for token in range(8):
        if token in prompt or token in said:
            expected[token] *= 1 / repetition if expected[token] > 0 else repetition
        if token in said:
            expected[token] -= presence + frequency * said.count(token)
        expected[token] += dict(bias).get(token, 0.0)
    processors = Processors(Penalties(repetition, presence, frequency, bias), prompt)
    processors.accept(output)
    first = row.copy()
    processors.apply(first, drafted)
    assert np.allclose(first, expected, atol=1e-5)
    again = row.copy()
    processors.apply(again)  # the drafted tokens left no trace
    rest = row.copy()
    same = Processors(Penalties(repetition, presence, frequency, bias), prompt)
    same.accept(output)
    same.apply(rest)
    assert (again == rest).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_the_least_bias_bans_a_token_and_the_largest_demands_it(temperature: float) -> None:
    row = np.random.default_rng(1).standard_normal(300).astype(np.float32) * 8
    best = int(row.argmax())
    for bias, chosen in ((-1e9, False), (1e9, True)):
        biased = row.copy()
        Processors(Penalties(bias=((best, bias),)), []).apply(biased)
        assert np.isfinite(biased).all()
        found = [choose(biased, Sampling(temperature, seed=seed), 5) == best for seed in range(50)]
        assert found == [chosen] * 50
