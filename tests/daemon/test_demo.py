"""The demo's daemon; what it shows is a real pair's (`make demo`)."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from draftd.daemon import demo


def test_its_daemon_leaves_what_the_users_own_has_learnt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, bool]] = []

    @contextmanager
    def started(pair: str, report: Any, *, cold: bool = False) -> Iterator[str]:
        heard.append((pair, cold))
        yield "ipc://here"

    pulled: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command: pulled)
    monkeypatch.setattr(demo, "private_daemon", started)
    monkeypatch.setattr(demo, "demonstrate", lambda console, endpoint: None)
    assert demo.main() == 0
    assert heard == [(demo.PAIR, True)]
