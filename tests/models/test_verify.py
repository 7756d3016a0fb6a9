"""The coupled verifier: enumerated, and equal to sampling without a draft whatever was drafted."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from draftd.models import verify as module
from draftd.models.rejection import Dice, Law
from draftd.models.sampling import Sampling, Weights, choose
from draftd.models.verify import verify
from tests.enumeration import EXACT, SIZES, Tokens, completed, exact, outcomes, total_variation, toy
from tests.fakes import TableTarget


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_draft_gives_the_targets_own_tokens(temperature: float) -> None:
    """Vocabulary 3, up to 3 drafted tokens, all of them: the output is a prefix of the plain one."""
    target = TableTarget(vocab=3, seed=1)
    for seed in range(50):
        sampling = Sampling(temperature, seed=seed)
        plain = [0, 1]
        for _ in range(4):
            plain.append(choose(target.row(plain), sampling, len(plain)))
        for length in range(4):
            for drafted in itertools.product(range(3), repeat=length):
                tokens = [0, 1, *drafted]
                rows = np.stack([target.row(tokens[: 2 + i]) for i in range(length + 1)])
                got = verify(rows, drafted, sampling, position=2)
                assert got == plain[2 : 2 + len(got)]
                agreed = next((i for i in range(length) if drafted[i] != plain[2 + i]), length)
                assert len(got) == agreed + 1


@pytest.mark.parametrize(("vocab", "length"), SIZES)
def test_the_coupled_verifier_has_the_targets_law(
    vocab: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides turn one uniform a position into a token, which couples them and can be enumerated.

    Both read the laws behind the same drafted tokens. At the edges of these two a uniform's meaning changes,
    nowhere else: 2 vocab - 1 intervals a drafted token and vocab behind them all, at most 9^4 * 5 ways.
    """
    p, q = toy(vocab, 6), toy(vocab, 6, 1.0)
    chosen = [0.0] * (length + 1)  # by position: the uniform

    @cache
    def edges(drafted: Tokens) -> NDArray[np.float64]:
        laws = (p, q) if len(drafted) < length else (p,)
        masses = [np.cumsum(law(drafted).weights)[:-1] for law in laws]
        return np.unique(np.concatenate([[0.0, 1.0], *masses]))

    def pick(row: Weights, sampling: Sampling, position: int) -> int:
        return int(np.searchsorted(np.cumsum(row)[:-1], chosen[position]))

    def run(dice: Dice) -> Tokens:
        drafted: Tokens = ()
        for t in range(length + 1):
            ends = edges(drafted)
            interval = dice.draw(Law(np.diff(ends)))
            chosen[t] = float(ends[interval] + ends[interval + 1]) / 2
            if t < length:
                drafted += (pick(q(drafted).weights, Sampling(), t),)
        rows = np.stack([p(drafted[:i]).weights for i in range(length + 1)])
        return tuple(verify(rows, drafted, Sampling(1.0), 0))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "choose", pick)
    law = completed(outcomes(run), p, vocab, length + 1)
    assert total_variation(law, exact(p, vocab, length + 1)) < EXACT
