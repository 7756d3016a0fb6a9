"""The verifiers enumerated: whatever the draft, what comes out has the target's own law, to the last digit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from draftd.models.rejection import (
    Dice,
    Law,
    verify_block,
    verify_tokens,
)
from tests.dice import outcomes, total_variation

Tokens = tuple[int, ...]
Verify = Callable[[Callable[[int], Law], Sequence[Law], Sequence[int], Dice], list[int]]
EXACT = 1e-12
SIZES = [(vocab, length) for vocab in (2, 3, 4, 5) for length in (1, 2, 3, 4) if vocab**length < 600]


class Toy:
    """A law for every prefix; a draft's is the target's with noise of its own."""

    def __init__(self, vocab: int, seed: int, noise: float = 0.0, sharp: float = 1.0) -> None:
        self.vocab, self.seed, self.noise, self.sharp = vocab, seed, noise, sharp

    def __call__(self, prefix: Tokens) -> Law:
        row = np.random.default_rng((self.seed, *prefix)).standard_normal(self.vocab) * self.sharp
        row += np.random.default_rng((self.seed, 99, *prefix)).standard_normal(self.vocab) * self.noise
        weights = np.exp(row)
        return Law(weights / weights.sum())


def exact(p: Callable[[Tokens], Law], vocab: int, length: int) -> dict[Tokens, float]:
    """The target's law of the next `length` tokens."""
    law: dict[Tokens, float] = {(): 1.0}
    for _ in range(length):
        law = {(*key, v): part * p(key).of(v) for key, part in law.items() for v in range(vocab)}
    return law


def completed(
    law: dict[Tokens, float], p: Callable[[Tokens], Law], vocab: int, length: int
) -> dict[Tokens, float]:
    """One round's law, with the tokens that it left open drawn from the target."""
    whole: dict[Tokens, float] = {}
    for key, part in law.items():
        rest = exact(lambda tail, key=key: p((*key, *tail)), vocab, length - len(key))  # type: ignore[misc]
        for tail, chance in rest.items():
            whole[*key, *tail] = whole.get((*key, *tail), 0.0) + part * chance
    return whole


def one_round(
    verify: Verify, p: Callable[[Tokens], Law], draft: Callable[[Dice], tuple[list[int], list[Law]]]
) -> dict[Tokens, float]:
    def run(dice: Dice) -> Tokens:
        drafted, q = draft(dice)
        return tuple(verify(lambda i: p(tuple(drafted[:i])), q, drafted, dice))

    return outcomes(run)


def drawing(q: Callable[[Tokens], Law], length: int) -> Callable[[Dice], tuple[list[int], list[Law]]]:
    """A model that drafts `length` tokens and hands over what it drew them from."""

    def draft(dice: Dice) -> tuple[list[int], list[Law]]:
        drafted: list[int] = []
        laws = []
        for _ in range(length):
            laws.append(q(tuple(drafted)))
            drafted.append(dice.draw(laws[-1]))
        return drafted, laws

    return draft


@pytest.mark.parametrize("verify", [verify_tokens, verify_block])
@pytest.mark.parametrize(("vocab", "length"), SIZES)
def test_a_round_has_the_targets_law(verify: Verify, vocab: int, length: int) -> None:
    for noise in (0.0, 0.5, 3.0):
        p, q = Toy(vocab, seed=length), Toy(vocab, seed=length, noise=noise)
        law = completed(one_round(verify, p, drawing(q, length)), p, vocab, length + 1)
        assert total_variation(law, exact(p, vocab, length + 1)) < EXACT
