"""The sampler against brute force over the whole row, and its noise against its distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from draftd.models import sampling as sampling_module
from draftd.models.groups import SIZE, STRIDE, count_groups, first_of, group_of, tokens_of, tops_of
from draftd.models.noise import noise_of
from draftd.models.sampling import Sampling, certainty, choose, confidence, keep

samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.5, 4.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 50]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01, 1e-20]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def brute_force_kept(row: NDArray[np.float32], sampling: Sampling) -> set[int]:
    """Top-k, then top-p, then min-p, straight from their definitions."""
    scaled = row.astype(np.float64) / sampling.temperature
    order = sorted(range(len(row)), key=lambda v: -scaled[v])
    kept = order[: sampling.top_k] if sampling.top_k else order
    p = np.exp(scaled - scaled.max())
    if sampling.top_p < 1.0:
        total = sum(p[v] for v in kept)
        mass, nucleus = 0.0, []
        for v in kept:
            nucleus.append(v)
            mass += p[v]
            if mass >= sampling.top_p * total:
                break
        kept = nucleus
    return {v for v in kept if p[v] >= sampling.min_p * p.max() * (1 - 1e-6)}


@given(seed=st.integers(0, 10_000), vocab=st.integers(2, 400), sampling=samplings)
@settings(max_examples=400)
def test_kept_set_is_the_definition(seed: int, vocab: int, sampling: Sampling) -> None:
    row = (np.random.default_rng(seed).standard_normal(vocab) * 3).astype(np.float32)
    kept = set(keep(row, sampling).tolist())
    wanted = brute_force_kept(row, sampling)
    # Float sums may move the edge of the nucleus by the one token that stands exactly on it.
    assert len(kept ^ wanted) <= (1 if sampling.top_p < 1.0 else 0)
    assert int(row.argmax()) in kept


def sorted_kept(row: NDArray[np.float32], sampling: Sampling) -> NDArray[np.int64]:
    """What is left, by a sort of the whole row: in single precision as draftd's own, equal to the token."""
    order = np.argsort(-row, kind="stable")
    if 0 < sampling.top_k < len(row):
        order = order[row[order] >= row[order[sampling.top_k - 1]]]
    floor = row[order[-1]]
    weights = np.exp((row[order] - row.max()) / np.float32(sampling.temperature)).astype(np.float64)
    if sampling.top_p < 1.0:
        mass = np.cumsum(weights)
        floor = row[order[min(int(np.searchsorted(mass, sampling.top_p * mass[-1])), len(order) - 1)]]
    if sampling.min_p > 0.0:
        top = float(row.max())
        floor = max(floor, np.float32(min(top + sampling.temperature * math.log(sampling.min_p), top)))
    return np.flatnonzero(row >= floor)


def make_row(seed: int, vocab: int, spread: float, kind: str) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    row = (random.standard_normal(vocab) * spread).astype(np.float32)
    if kind == "peak":
        row[random.integers(vocab)] += 12
    if kind == "ties":
        row = np.round(row)
    if kind == "masked":
        row[1:][random.random(vocab - 1) < 0.7] = -np.inf
    return row


@given(
    seed=st.integers(0, 10_000),
    vocab=st.one_of(st.integers(2, 300), st.sampled_from([1000, 5000, 30_000, 132_000, 151_936])),
    spread=st.sampled_from([0.0, 0.01, 1.0, 3.0]),
    kind=st.sampled_from(["plain", "peak", "ties", "masked"]),
    sampling=samplings,
    position=st.integers(0, 9999),
)
@settings(max_examples=150)
def test_choice_is_the_argmax_over_the_kept_set(
    seed: int, vocab: int, spread: float, kind: str, sampling: Sampling, position: int
) -> None:
    row = make_row(seed, vocab, spread, kind)
    kept = sorted_kept(row, sampling)
    assert keep(row, sampling).tolist() == kept.tolist()
    scores = row[kept].astype(np.float64) / sampling.temperature
    scores += noise_of(sampling.seed, position, vocab).at(kept)
    wanted = int(kept[scores.argmax()]) if sampling.top_k != 1 else int(row.argmax())  # of ties the first
    assert choose(row, sampling, position) == wanted


def test_most_winners_are_inside_top_p_without_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    row = np.random.default_rng(0).standard_normal(151_936).astype(np.float32)
    row[:20] = 16.0 - 0.5 * np.arange(20)  # hold nearly all there is
    sorts = []
    whole = sampling_module._top_p

    def counted(left: NDArray[np.float32], sampling: Sampling, tops: NDArray[np.float32]) -> np.float32:
        sorts.append(sampling.top_p)
        return whole(left, sampling, tops)

    monkeypatch.setattr(sampling_module, "_top_p", counted)
    sampling = Sampling(0.8, top_p=0.95, seed=1)
    others = [token for position in range(200) if (token := choose(row, sampling, position)) != 0]
    assert len(others) > 50
    assert len(sorts) < 30  # where the winner was one of the last twentieth, or near its edge


def test_greedy_is_the_argmax_and_ignores_the_seed() -> None:
    row = np.array([0.0, 3.0, 1.0], np.float32)
    assert {choose(row, Sampling(seed=seed), 5) for seed in range(20)} == {1}


def test_samples_follow_the_distribution() -> None:
    """Chi-square over 40,000 positions of one row; 11 degrees of freedom, p = 1e-6 at 47.5."""
    row = np.linspace(-2.0, 2.0, 12).astype(np.float32)
    sampling = Sampling(temperature=1.3, seed=7)
    weights = np.exp(row.astype(np.float64) / sampling.temperature)
    expected = weights / weights.sum() * 40_000
    counts = np.bincount([choose(row, sampling, position) for position in range(40_000)], minlength=12)
    assert float(((counts - expected) ** 2 / expected).sum()) < 47.5


def test_noise_is_standard_gumbel_and_its_bounds_hold() -> None:
    everything = np.arange(SIZE * STRIDE)
    values, places = [], np.zeros(SIZE)
    for seed in range(6):
        noise = noise_of(seed, 3, len(everything))
        at = noise.at(everything)
        grouped = at.reshape(SIZE, STRIDE)
        assert np.allclose(grouped.max(axis=0), noise.bound)
        places += np.bincount(grouped.argmax(axis=0), minlength=SIZE)
        values.append(at)
    sample = np.concatenate(values)  # 786,432 draws
    assert sample.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert sample.var() == pytest.approx(math.pi**2 / 6, abs=0.02)
    # P(g <= 0) = exp(-1), and the places of the groups' maxima are spread evenly
    assert (sample <= 0).mean() == pytest.approx(math.exp(-1), abs=0.004)
    expected = 6 * STRIDE / SIZE
    assert float(((places - expected) ** 2 / expected).sum()) < 220  # 127 degrees of freedom, p = 4e-7


def test_noise_depends_on_seed_position_and_token_only() -> None:
    tokens = np.array([0, 63, 64, 999])
    for vocab in (2000, SIZE * STRIDE, 300_000):
        assert (noise_of(5, 9, 1000).at(tokens) == noise_of(5, 9, vocab).at(tokens)).all()
    assert (noise_of(5, 9, 1000).at(tokens) != noise_of(5, 10, 1000).at(tokens)).all()
    assert (noise_of(5, 9, 1000).at(tokens) != noise_of(6, 9, 1000).at(tokens)).all()


def test_one_token_s_noise_is_the_same_but_for_rounding() -> None:
    noise = noise_of(5, 9, 200_000)
    tokens = np.concatenate((np.arange(0, 200_000, 997), noise.heads[:99]))
    assert np.allclose(noise.at(tokens), [noise.about(int(token)) for token in tokens], rtol=0, atol=1e-12)


@given(vocab=st.one_of(st.integers(1, 3000), st.integers(SIZE * STRIDE - 1500, 3 * SIZE * STRIDE)))
@settings(max_examples=60)
def test_groups_are_a_partition_with_the_largest_of_each(vocab: int) -> None:
    row = np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32)
    tokens = np.arange(vocab)
    groups = group_of(tokens)
    assert np.array_equal(np.unique(groups), np.arange(count_groups(vocab)))
    assert ((tokens - first_of(groups)) % STRIDE == 0).all()
    assert ((tokens - first_of(groups)) // STRIDE < SIZE).all()
    wanted = np.full(count_groups(vocab), -np.inf, np.float32)
    np.maximum.at(wanted, groups, row)
    assert np.array_equal(tops_of(row), wanted)
    assert np.array_equal(np.sort(tokens_of(np.arange(count_groups(vocab)), vocab)), tokens)
    assert np.array_equal(np.sort(tokens_of(groups[-1:], vocab)), tokens[groups == groups[-1]])


def test_confidence_is_the_softmax() -> None:
    row = np.log(np.array([0.1, 0.2, 0.7], np.float32))
    assert confidence(row, 1) == pytest.approx(0.2, rel=1e-5)


def test_confidence_counts_the_best_of_each_group_where_there_are_many_tokens() -> None:
    row = make_row(1, 150_000, 3.0, "peak")
    best = int(row.argmax())
    exact = float(1.0 / np.exp(row - row[best]).sum())
    assert exact <= confidence(row, best) == certainty(row)
    row[best] += 6  # where it matters, little is left out
    exact = float(1.0 / np.exp(row - row[best]).sum())
    assert confidence(row, best) == pytest.approx(exact, abs=0.02)
    assert confidence(row, best, tops_of(row)) == confidence(row, best)


def test_certainty_is_the_likeliest_token_s() -> None:
    row = np.log(np.array([0.1, 0.7, 0.2], np.float32))
    assert certainty(row) == pytest.approx(0.7, rel=1e-5)


def test_a_row_that_holds_no_numbers_gives_a_token_all_the_same() -> None:
    row = make_row(1, 2000, 3.0, "plain")
    row[700] = np.nan
    for sampling in (Sampling(), Sampling(0.8, seed=1), Sampling(0.8, top_p=0.9, top_k=5, min_p=0.1, seed=1)):
        assert 0 <= choose(row, sampling, 3) < 2000


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.9}, {"top_k": 3, "top_p": 0.9}, {"min_p": 0.1}])
def test_one_of_several_logits_beyond_all_numbers_is_chosen(limits: dict[str, Any]) -> None:
    for seed in range(20):
        row = make_row(seed, 3000, 3.0, "plain")
        row[[5, 700, 1025, 2900]] = np.inf  # as a tiny repetition_penalty makes them
        assert row[choose(row, Sampling(0.8, seed=seed, **limits), 3)] == np.inf


def test_a_token_without_a_chance_has_no_confidence() -> None:
    row = np.full(3000, -np.inf, np.float32)
    row[5] = 200.0
    assert confidence(row, 6) == 0.0
    row[6] = -200.0
    assert confidence(row, 6) == pytest.approx(0.0, abs=1e-30)
    assert certainty(row) == 1.0


@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 1e-38, 1e-7, 1e-6, 1e-3])
@pytest.mark.parametrize("limits", [{}, {"top_p": 0.5}, {"top_k": 3, "min_p": 0.1}])
def test_a_tiny_temperature_is_as_good_as_none(temperature: float, limits: dict[str, Any]) -> None:
    row = np.random.default_rng(3).normal(0, 30, 400).astype(np.float32)
    assert choose(row, Sampling(temperature, **limits, seed=9), 7) == int(row.argmax())
