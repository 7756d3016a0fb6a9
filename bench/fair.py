"""What keeps a comparison fair: orders without a pattern, an index of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def order(contenders: Sequence[T], question: int, turn: int = 0) -> list[T]:
    """The contenders of a question's turn, shuffled by both: none always follows the same one."""
    return random.Random(f"{question} {turn}").sample(contenders, len(contenders))


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2) (Jain, Chiu and Hawe 1984)."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))
