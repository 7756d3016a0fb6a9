from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType

import pytest

Program = Callable[[str], ModuleType]


def test_no_contender_always_follows_the_same_one(program: Program) -> None:
    order = program("fair").order
    found = [order("abcd", question, turn) for question in range(40) for turn in range(2)]
    assert all(sorted(each) == [*"abcd"] for each in found)
    assert found[0] == order("abcd", 0, 0)
    followers = {(before, after) for each in found for before, after in pairwise(each)}
    assert len(followers) == 12  # each behind each other


def test_jains_index(program: Program) -> None:
    jain = program("fair").jain
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
