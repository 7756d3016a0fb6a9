"""Every outcome of code that throws dice, with its exact probability: a run for each way they can fall."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from functools import cache
from typing import TypeVar

import numpy as np

from draftd.models.rejection import Dice, Law

T = TypeVar("T", bound=Hashable)
EXACT = 1e-12  # of a total variation: what rounding may add up to
SIZES = list(itertools.product((2, 3, 4, 5), (1, 2, 3, 4)))  # vocabulary, drafted tokens

Tokens = tuple[int, ...]
Laws = Callable[[Tokens], Law]  # by prefix


class Rigged(Dice):
    """Dice that fall as told, then the first way there is; `chance` is how probable that was."""

    def __init__(self, path: list[int]) -> None:
        self.path = path
        self.at = 0
        self.chance = 1.0
        self.ways: list[int] = []  # by throw: how many outcomes it had

    def accept(self, chance: float) -> bool:
        assert -1e-12 <= chance <= 1 + 1e-12
        ways = [(True, chance), (False, 1.0 - chance)]
        return bool(self._fall([way for way in ways if way[1] > 0]))

    def draw(self, law: Law) -> int:
        tokens = np.arange(len(law.weights)) if law.tokens is None else law.tokens
        assert (law.weights >= 0).all()
        total = law.weights.sum()
        return int(
            self._fall(
                [
                    (token, weight / total)
                    for token, weight in zip(tokens.tolist(), law.weights.tolist(), strict=True)
                    if weight > 0
                ]
            )
        )

    def _fall(self, ways: list[tuple[int, float]] | list[tuple[bool, float]]) -> int:
        if self.at == len(self.path):
            self.path.append(0)
        self.ways.append(len(ways))
        value, chance = ways[self.path[self.at]]
        self.at += 1
        self.chance *= chance
        return value


def outcomes(run: Callable[[Dice], T]) -> dict[T, float]:
    """The law of what `run` returns."""
    law: dict[T, float] = defaultdict(float)
    path: list[int] = []
    while True:
        dice = Rigged(path)
        law[run(dice)] += dice.chance
        while path and path[-1] + 1 == dice.ways[len(path) - 1]:
            path.pop()
        if not path:
            return dict(law)
        path[-1] += 1


def total_variation(one: Mapping[T, float], other: Mapping[T, float]) -> float:
    """Half the sum of the differences: the most that any event's probability is off."""
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other}) / 2


def toy(vocab: int, seed: int, noise: float = 0.0) -> Laws:
    """A law for every prefix; a draft's is the target's with noise of its own."""

    @cache
    def law(prefix: Tokens) -> Law:
        row = np.random.default_rng((seed, *prefix)).standard_normal(vocab)
        row += np.random.default_rng((seed, 99, *prefix)).standard_normal(vocab) * noise
        weights = np.exp(row)
        return Law(weights / weights.sum())

    return law


def exact(p: Laws, vocab: int, length: int, start: Tokens = ()) -> dict[Tokens, float]:
    """The target's law of the next tokens."""
    law: dict[Tokens, float] = {(): 1.0}
    for _ in range(length):
        law = {(*key, v): part * p(start + key).of(v) for key, part in law.items() for v in range(vocab)}
    return law


def completed(law: dict[Tokens, float], p: Laws, vocab: int, length: int) -> dict[Tokens, float]:
    """One round's law, with the tokens that it left open drawn from the target."""
    whole: dict[Tokens, float] = {}
    for key, part in law.items():
        for tail, chance in exact(p, vocab, length - len(key), key).items():
            whole[*key, *tail] = whole.get((*key, *tail), 0.0) + part * chance
    return whole
