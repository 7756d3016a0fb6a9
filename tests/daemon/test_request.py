"""A request's books."""

from __future__ import annotations

from draftd.daemon.request import TOLD, Tally


def test_the_sources_of_a_bounded_number_of_rounds_are_told() -> None:
    tally = Tally()
    for _ in range(TOLD):
        tally.count(1, 1, "model", ["model"])
    tally.count(0, 0)
    assert tally.rounds == TOLD + 1
    assert tally.drafted_by == ["model"] * TOLD
