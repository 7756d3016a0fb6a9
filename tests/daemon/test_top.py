"""What `draftd top` shows of a status, as a terminal would get it."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from rich.console import Console

from draftd.daemon.top import Speed, top, view
from draftd.ipc.messages import Status
from tests.daemon.test_metrics import full_status

ACTIVE = {
    "request": 17,
    "app": "[red]editor",
    "state": "running",
    "seconds": 75.0,
    "tokens": 60,
    "tokens_per_second": 12.34,
    "drafted": 40,
    "accepted": 30,
}


def shown(status: Status, tokens_per_second: float = 0.0) -> str:
    """The whole screen as text."""
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(view(status, tokens_per_second))
    return capture.get()


def status(**fields: Any) -> Status:
    return full_status().model_copy(update=fields)


def row(text: str, first: str) -> list[str]:
    """The words of the one line that begins so."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_requests_speeds_acceptance_and_memory_are_shown() -> None:
    memory = {"front": 50_000_000, "engine": 2_500_000_000}
    waiting = {**ACTIVE, "request": 18, "app": "", "state": "waiting", "drafted": 0, "accepted": 0}
    text = shown(status(active=[ACTIVE, waiting], memory=memory), 123.45)
    assert "123.5 tokens/s" in text
    assert "1 of 4 slots, 2 of 64 queued" in text
    assert "3 finished" in text
    assert "front 50 MB, engine 2.50 GB" in text
    assert "engine restarts: 1" in text
    assert row(text, "17") == ["17", "[red]editor", "running", "1", "min", "60", "12.3", "30", "75%"]
    assert row(text, "18") == ["18", "-", "waiting", "1", "min", "60", "12.3", "0", "-"]
    assert row(text, "model") == ["model", "7", "4", "57%", "▇▃"]  # 3 of 4 and 1 of 3


def test_a_daemon_that_has_done_nothing_says_so() -> None:
    text = shown(status(counters={}, active=[], requests={}, memory={}))
    assert "no requests" in text
    assert "nothing drafted yet" in text
    assert "restarts" not in text


def test_a_name_cannot_steer_the_terminal() -> None:
    text = shown(status(active=[{**ACTIVE, "app": "\x1b[2J\x9bred"}]))
    assert row(text, "17")[1] == r"'\x1b[2J\x9bred'"
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("every", [float("nan"), float("inf"), 1e300])
def test_no_look_is_a_time_that_is_none(every: float) -> None:
    with pytest.raises(typer.BadParameter, match="should be seconds"):
        top(every=every)


def test_a_full_bar_an_empty_one_and_a_place_that_was_never_reached() -> None:
    counters = {"drafted": {"suffix": [8, 8, 0]}, "accepted": {"suffix": [8, 0, 0]}}
    text = shown(status(counters=counters))
    assert row(text, "suffix") == ["suffix", "16", "8", "50%", "█▁"]


def test_speed_is_what_came_between_two_looks() -> None:
    speed = Speed()
    speed.add(status(active=[ACTIVE]), 10.0)  # 7 tokens of ended requests, 60 of this one
    assert speed.now == 0.0
    speed.add(status(active=[{**ACTIVE, "tokens": 70}]), 12.0)
    assert speed.now == 5.0
    speed.add(status(active=[]), 13.0)  # abandoned: its tokens are in no sum
    assert speed.now == 0.0
