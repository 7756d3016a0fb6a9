"""What a reload that leaves the models where they are tells the engine, and the one after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draftd.daemon import logs
from draftd.daemon.settings import Settings
from tests.daemon.desk import desk


def test_how_to_log_reaches_the_engine_that_runs_and_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"log_level": "debug", "log_content": True}
    told: list[dict[str, Any]] = []
    here: list[tuple[str, bool]] = []
    monkeypatch.setattr(logs, "set_up", lambda level, content: here.append((level, content)))
    with desk(tmp_path) as made:
        front = made.front
        monkeypatch.setattr(front.engine, "send", told.append)
        front.engine.load["settings"]["check_memory"] = False  # as after the first engine was ready
        front.reload._again = lambda: Settings.model_validate({**changed, "queue": 7})
        front.reload.run(front.settings)
        assert here == [("debug", True)]
        assert told == [{"type": "log", "level": "debug", "content": True}]
        first = front.engine.load["settings"]
        assert (first["log_level"], first["log_content"], first["queue"]) == ("debug", True, 7)
        assert not first["check_memory"], "what has fitted is not refused later"

        front.reload._again = lambda: Settings.model_validate({**changed, "queue": 9})
        front.reload.run(front.settings)
        assert len(told) == 1, "nothing of the logs has changed"
