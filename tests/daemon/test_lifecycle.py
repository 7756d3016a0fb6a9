"""What the front makes of an engine's words and end; in its place runs a program that ends at once."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest

from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.lifetime import Stage
from tests.daemon.desk import Desk

FAILED: dict[str, Any] = {"type": "failed", "code": "model_not_found", "message": "the file is gone"}


@pytest.fixture
def loading(front: Desk, monkeypatch: pytest.MonkeyPatch) -> Lifecycle:
    """A front whose engine loads, not for the first time."""
    true = shutil.which("true")
    assert true is not None
    monkeypatch.setattr(sys, "executable", true)
    life = front.front.life
    life.state, life._was_ready = "loading", True
    life.lifetime.stage = Stage.LOADING
    life.start()
    return life


def test_an_engine_that_ends_with_the_word_that_it_failed_is_not_started_again(loading: Lifecycle) -> None:
    """Both may come in one turn; the next request is what tries again."""
    loading._on_message(FAILED)
    loading.died(stopping=False)
    assert loading.lifetime.stage is Stage.OUT
    assert loading.state == "unloaded"
    assert loading.engine.restart_at is None
    assert not loading.jobs.counters.restarts
