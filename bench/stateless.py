"""What a target and a draft that keep nothing between rounds answer to the rest of their protocols."""

from __future__ import annotations

from collections.abc import Sequence

from draftd.models.base import State


class Stateless:
    """The parts of models/base.py's Target and drafts/base.py's Draft that have nothing to do here."""

    even = padded = False

    def truncate(self, slot: int, length: int) -> None: ...

    def copy_prefix(self, source: int, target: int, length: int) -> None: ...

    def save_slot(self, slot: int) -> State | None:
        return None

    def load_slot(self, slot: int, state: State, length: int) -> None:
        raise AssertionError("nothing was saved here")

    def prepare(self, slot: int, tokens: Sequence[int]) -> None: ...

    def copy(self, source: int, target: int, length: int) -> None: ...

    def swap(self, one: int, other: int) -> None: ...

    def forget(self, slot: int) -> None: ...

    def drop(self, slots: Sequence[int]) -> None: ...

    def set_threads(self, count: int) -> None: ...

    def close(self) -> None: ...
