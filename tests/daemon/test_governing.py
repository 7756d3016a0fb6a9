"""When the front looks at the machine, and what it takes for other programs' use of it; no engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from draftd.daemon import governing
from tests.daemon.desk import Desk


def test_the_machine_is_looked_at_though_short_requests_come_one_after_the_other(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them comes when none is open: a request after a pause, however short."""
    made = front.front.governing
    looks: list[float] = []
    now = 100.0
    monkeypatch.setattr(made, "_look", looks.append)
    monkeypatch.setattr(governing, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(21):
        made.admit()
        made.tick(now)
        now += 0.5
    assert looks == [100.0, 105.0, 110.0]


def test_what_others_use_is_not_told_from_a_moment(front: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    made = front.front.governing
    monkeypatch.setattr(made, "_cpu_use", lambda now: (now, 2 * now, 1))
    made._wake(100.0)
    made._follow_load(100.25)
    assert made.others == 0.0
    made._follow_load(100.75)
    assert made.others == 2.0, "since the request came"
