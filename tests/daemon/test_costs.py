"""Costs by width from noisy passes."""

from __future__ import annotations

from itertools import pairwise
from math import exp
from random import Random

import pytest

from draftd.daemon.costs import Costs
from tests.daemon.simulator import MACHINES


def measured(table: list[float], widths: list[int], noise: float = 0.15, seed: int = 1) -> Costs:
    random, costs = Random(seed), Costs(1.0, 0.04)
    for width in widths:
        costs.observe(width, table[width] * exp(random.gauss(0, noise)))
    return costs


@pytest.mark.parametrize("name", ["transformers, tuned draft", "llama.cpp, tuned draft"])
def test_follows_a_machine_through_noise(name: str) -> None:
    table, _ = MACHINES[name].tables()
    costs = measured(table, [1, 2, 3, 5, 7, 9, 13, 17] * 40)
    for width in (1, 3, 5, 9, 17):
        assert costs.seconds(width) == pytest.approx(table[width], rel=0.12)


def test_never_falls_with_more_rows() -> None:
    for seed in range(10):
        costs = measured([0.1] * 40, [9, 1, 4, 2, 17, 33, 3] * 5, noise=0.5, seed=seed)
        table = costs.table(600)
        assert table[0] == 0.0
        assert all(one <= other + 1e-12 for one, other in pairwise(table))
        assert table[33] == pytest.approx(costs.seconds(33))


def test_the_first_pass_may_be_a_hiccup() -> None:
    costs = Costs(1.0, 0.04)
    for seconds in (3.0, 0.1, 0.1, 0.1, 0.1):
        costs.observe(1, seconds)
    assert costs.seconds(1) == pytest.approx(0.1, rel=0.2)


def test_one_hiccup_moves_little() -> None:
    costs = measured([0.1] * 20, [1, 9] * 20, noise=0.0)
    costs.observe(9, 1.0)
    assert costs.seconds(9) == pytest.approx(0.1, rel=0.05)
    assert costs.seconds(1) == pytest.approx(0.1, rel=0.05)


def test_a_machine_grown_slower_is_seen_at_widths_not_measured_since() -> None:
    costs = measured([0.1] * 20, [1, 9] * 20, noise=0.0)
    for _ in range(8):
        costs.observe(9, 0.3)
    assert costs.seconds(1) == pytest.approx(0.3, rel=0.1)


def test_noise_of_used_widths_does_not_carry_the_others_away() -> None:
    """Level and shape must clip alike: else each round drags the level a little further."""
    table = [0.1 * width for width in range(20)]
    costs = measured(table, [1, 3, 9] * 20 + [3] * 3000)
    for width in (1, 3, 9):
        assert costs.seconds(width) == pytest.approx(table[width], rel=0.15)


def test_level_and_shape_do_not_drift_apart() -> None:
    """What a file may hold has bounds (daemon/learnt.py), which an endless drift would leave."""
    costs = Costs(1.0, 0.04)
    for turn in range(10_000):  # slower by and by, then at once as before
        costs.observe(9 if turn % 2 else 1, (0.2 if turn % 2 else 0.1) * exp(0.007 * (turn % 100)))
    assert costs.level == pytest.approx(costs.seconds(1))
    assert 0.1 < costs.level < 0.2
    assert 0.2 < costs.seconds(9) < 0.4


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_leaves_out_what_cannot_be(seconds: float) -> None:
    costs = measured([0.1] * 20, [1, 9], noise=0.0)
    before = costs.table(20)
    costs.observe(1, seconds)
    costs.observe(0, 0.1)
    costs.observe(10_000, 0.1)
    assert costs.table(20) == before
