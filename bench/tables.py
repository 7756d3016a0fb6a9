"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table's lines."""
    return [row(heads), "|---" * len(heads) + "|", *map(row, rows)]


def row(cells: Sequence[str]) -> str:
    """One of its lines; an empty cell is a single blank."""
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
