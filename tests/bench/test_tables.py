from __future__ import annotations

from collections.abc import Callable
from types import ModuleType


def test_a_table_is_markdown_and_an_empty_cell_one_blank(program: Callable[[str], ModuleType]) -> None:
    assert program("tables").table(["a", "", "c"], iter([["1", "two words", ""], ["", "", "3"]])) == [
        "| a | | c |",
        "|---|---|---|",
        "| 1 | two words | |",
        "| | | 3 |",
    ]
