"""What the front makes of an engine's words and end; in its place runs a program that ends at once."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

import pytest

from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.lifetime import Stage
from draftd.daemon.supervisor import BACKOFF
from draftd.ipc.errors import DraftdError
from tests.daemon.desk import Desk

FAILED: dict[str, Any] = {"type": "failed", "code": "model_not_found", "message": "the file is gone"}
READY: dict[str, Any] = {"type": "ready", "info": {}}


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


@pytest.mark.parametrize("words", [READY, FAILED], ids=["ready", "failed"])
def test_the_last_words_of_an_engine_that_is_replaced_are_not_the_next_ones(
    loading: Lifecycle, words: dict[str, Any]
) -> None:
    undone: list[DraftdError] = []
    loading.replace(loading.engine.load, "other")
    loading.fall_back = undone.append
    loading._on_message(words)
    assert loading.state == "restarting"
    assert not undone
    assert loading.fall_back == undone.append, "the next engine has yet to say whether it loads"
    loading.died(stopping=False)
    assert loading.engine.process is not None, "the next one"


def test_a_reload_whose_engine_ends_again_and_again_is_undone(loading: Lifecycle) -> None:
    """As is one that says why its models can't be loaded: the kernel ends one that takes too much memory."""
    undone: list[DraftdError] = []
    loading.fall_back = undone.append
    loading.engine.crashes = len(BACKOFF)
    loading.died(stopping=False)
    assert [str(error) for error in undone] == ["the engine ended with status 0, 5 ends in a row"]
    assert loading.state != "failed"


def test_what_was_learnt_with_one_configuration_is_not_told_of_the_next(loading: Lifecycle) -> None:
    """It would stand for the new pair until that has answered: its costs, and the page's target alone."""
    learnt: dict[str, Any] = {"type": "learnt", "report": {"target_ms": {"1": 40.0}}}
    for words in (READY, learnt):
        loading._on_message(words)
    assert loading.learnt
    loading.replace(loading.engine.load, "other")
    assert not loading.learnt
    loading._on_message(learnt)  # the round that it was in ended a request
    loading.died(stopping=False)
    assert not loading.learnt


def test_the_next_engine_is_told_what_fitted(loading: Lifecycle) -> None:
    first = loading.engine.load
    assert (first["settings"]["check_memory"], first["ran"]) == (True, None)
    loading._on_message({"type": "ready", "info": {"backend": "llama_cpp"}})
    first = loading.engine.load
    assert (first["settings"]["check_memory"], first["ran"]) == (False, "llama_cpp")


def test_an_engine_that_leaves_may_take_as_long_as_any_step(loading: Lifecycle) -> None:
    """It may be writing the conversation of a request that has just ended, gigabytes of it."""
    loading._on_message(READY)
    now = time.monotonic()
    loading.lifetime.unload(now)
    loading.tick(now)
    assert loading.lifetime.stage is Stage.LEAVING
    assert loading._leaves_by == now + 60.0, "hang_seconds"


def test_behind_an_unload_ends_are_counted_anew(loading: Lifecycle) -> None:
    """An operator who takes a daemon back that had given up gets as many tries as at its start."""
    loading.engine.crashes = len(BACKOFF) + 1
    loading.lifetime.unload(time.monotonic())
    loading.tick(time.monotonic())
    loading.died(stopping=False)
    loading.lifetime.acquire(1)
    loading.tick(time.monotonic())
    loading.died(stopping=False)
    assert loading.state == "restarting"
    assert loading.engine.restart_at is not None
