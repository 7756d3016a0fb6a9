"""What keeps a comparison fair: a daemon that no other program slows down, and orders without a pattern."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# While a peer answers, the daemon would see a busy machine and give its next answer fewer threads.
STEADY = {"DRAFTD_FOLLOW_LOAD": "false", "DRAFTD_GOVERNOR": "false"}


def order(contenders: Sequence[T], question: int, turn: int = 0) -> list[T]:
    """The contenders of a question's turn, shuffled by both: none always follows the same one."""
    return random.Random(f"{question} {turn}").sample(contenders, len(contenders))
