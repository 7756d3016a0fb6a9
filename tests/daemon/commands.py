"""`draftd` as a child process, for the tests of its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from draftd.ipc import messages
from draftd.ipc.messages import Generate
from tests.ipc import scripted
from tests.ipc.scripted import Say

DRAFTD = [sys.executable, "-m", "draftd.daemon.cli"]
WAIT = 20.0  # seconds a child may take for anything


def draftd(
    *arguments: str, endpoint: str = "", given: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DRAFTD, *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=WAIT,
        env={**os.environ, "DRAFTD_ENDPOINT": endpoint, **(environment or {})},
    )


def begin_only(message: messages.ClientMessage, say: Say) -> None:
    if isinstance(message, Generate):
        say(scripted.tokens(message.id, "Once", [1], [False], [4]))
    elif isinstance(message, messages.Cancel):
        say(scripted.done(message.id, "cancelled"))
    else:
        scripted.answer(message, say)


def started_daemons(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[tuple[Any, ...]]:
    """The pair, the variables and whether it is cold of each daemon that a module would start for itself."""
    heard: list[tuple[Any, ...]] = []

    @contextmanager
    def started(pair: str, report: Any, config: Any, variables: Any, *, cold: bool) -> Iterator[str]:
        heard.append((pair, variables, cold))
        yield "ipc://here"

    monkeypatch.setattr(module, "private_daemon", started)
    return heard
