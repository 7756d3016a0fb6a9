"""What the verifiers are given: a law as the chain of processors leaves it, and dice that fall by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.models.groups import tops_of
from draftd.models.rejection import Dice, Law, law_of
from draftd.models.sampling import Sampling
from tests.models.test_sampling import brute_force_kept

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.2, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)


@given(seed=st.integers(0, 10_000), vocab=st.integers(2, 400), sampling=samplings)
@settings(max_examples=200)
def test_a_law_is_the_softmax_of_what_the_chain_keeps(seed: int, vocab: int, sampling: Sampling) -> None:
    row = (np.random.default_rng(seed).standard_normal(vocab) * 3).astype(np.float32)
    law = law_of(row, sampling)
    kept = list(range(vocab)) if law.tokens is None else law.tokens.tolist()
    assert len(set(kept) ^ brute_force_kept(row, sampling)) <= (1 if sampling.top_p < 1.0 else 0)
    weights = np.exp(row[kept].astype(np.float64) / sampling.temperature)
    assert law.weights * law.scale == pytest.approx(weights / weights.sum(), rel=1e-9)
    assert sum(law.of(token) for token in range(vocab)) == pytest.approx(1.0)
    assert law.of(vocab) == 0.0


def test_of_many_tokens_a_law_is_as_exact_as_their_logits() -> None:
    """Total variation over 150,000 tokens in single precision: a logit's last digit is worth as much."""
    row = (np.random.default_rng(2).standard_normal(150_000) * 3).astype(np.float32)
    law = law_of(row, Sampling(0.8))
    wanted = np.exp((row - row.max()).astype(np.float64) / 0.8)
    wanted /= wanted.sum()
    assert law.weights.dtype == np.float32
    assert law.mass == pytest.approx(1.0, abs=1e-12)
    assert np.abs(law.weights * law.scale - wanted).sum() / 2 < 1e-6
    other = law_of(np.roll(row, 1), Sampling(0.8))
    excess = law.excess(other, 0.9)
    assert excess.mass == pytest.approx(np.maximum(0.9 * wanted - np.roll(wanted, 1), 0.0).sum(), rel=1e-5)


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_a_law_looks_for_no_largest_logits_that_are_known(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = (np.random.default_rng(1).standard_normal(3000) * 3).astype(np.float32)
    wanted, tops = law_of(row, Sampling(0.8, **options)), tops_of(row)
    monkeypatch.delattr("draftd.models.sampling.tops_of")
    law = law_of(row, Sampling(0.8, **options), tops)
    assert law.tokens is not None
    assert wanted.tokens is not None
    assert np.array_equal(law.tokens, wanted.tokens)
    assert np.array_equal(law.weights, wanted.weights)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1e-7)])
def test_of_equal_logits_the_first_is_the_greedy_choice(sampling: Sampling) -> None:
    row = np.zeros(3000, np.float32)
    row[[5, 1024]] = 1.0  # of the sixth group and of the first
    law = law_of(row, sampling, tops_of(row))
    assert (law.of(5), law.of(1024)) == (1.0, 0.0)


def test_a_row_without_numbers_is_the_choice_that_coupling_makes() -> None:
    law = law_of(np.full(5, -np.inf, np.float32), Sampling(1.0))
    assert (law.of(0), law.of(1)) == (1.0, 0.0)


@given(
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sparse=st.tuples(st.booleans(), st.booleans()),
    reach=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_excess_is_the_definition_whatever_the_widths(
    widths: tuple[int, int], sparse: tuple[bool, bool], reach: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    laws, rows = [], []
    for width, some in zip(widths, sparse, strict=True):
        tokens = np.sort(random.permutation(9)[:width]) if some else np.arange(width)
        laws.append(Law(random.random(width), tokens if some else None, random.choice([1.0, 0.25])))
        rows.append(np.zeros(9))
        rows[-1][tokens] = laws[-1].weights * laws[-1].scale
    excess = laws[0].excess(laws[1], reach)
    wanted = np.maximum(reach * rows[0] - rows[1], 0.0)
    assert [excess.of(token) for token in range(9)] == pytest.approx(wanted.tolist(), abs=1e-15)
    assert excess.mass == pytest.approx(wanted.sum(), abs=1e-14)


def test_dice_fall_as_often_as_they_should() -> None:
    """Chi-square over 40,000 throws; p = 1e-6 at 33 for four degrees of freedom, at 24 for one."""
    dice = Dice(1)
    law = Law(np.array([0.0, 0.2, 0.1, 0.0, 0.3, 0.25, 0.0]), np.arange(10, 17))
    expected = law.weights / law.weights.sum() * 40_000
    counts = np.bincount([dice.draw(law) for _ in range(40_000)], minlength=17)[10:]
    there = expected > 0
    assert counts[~there].sum() == 0
    assert float(((counts - expected)[there] ** 2 / expected[there]).sum()) < 33
    accepted = sum(dice.accept(0.3) for _ in range(40_000))
    assert (accepted - 12_000) ** 2 / 12_000 + (accepted - 12_000) ** 2 / 28_000 < 24
    assert dice.accept(1.0)
    assert not dice.accept(0.0)


def test_dice_differ_from_one_pair_to_the_next() -> None:
    law = Law(np.ones(1000))
    assert [Dice().draw(law) for _ in range(4)] != [Dice().draw(law) for _ in range(4)]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (1 - 2**-53, 3)])
def test_the_ends_of_a_uniform_choose_no_token_without_weight(uniform: float, token: int) -> None:
    class Ends:
        def random(self) -> float:
            return uniform

    dice = Dice()
    dice._random = Ends()  # type: ignore[assignment]
    assert dice.draw(Law(np.array([0.0, 0.1, 0.0, 0.7, 0.0]))) == token


@pytest.mark.parametrize("width", [1, 511, 512, 513, 5000])
def test_of_a_wide_law_the_token_is_drawn_that_a_running_sum_finds(width: int) -> None:
    random = np.random.default_rng(width)
    weights = random.random(width) * (random.random(width) < 0.2)
    weights[-1] = 0.5
    law, dice, twin = Law(weights), Dice(7), np.random.default_rng(7)
    mass = np.cumsum(weights)
    wanted = [int(np.searchsorted(mass, twin.random() * mass[-1], side="right")) for _ in range(200)]
    assert [dice.draw(law) for _ in range(200)] == wanted
