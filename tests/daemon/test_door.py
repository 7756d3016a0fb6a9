"""The socket file, where it can't be made again at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftd.daemon.door import Door
from draftd.ipc.endpoint import prepare


def test_a_path_that_something_else_has_taken_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with prepare(f"ipc://{tmp_path}/d.sock") as hold:
        door = Door(hold, hold.path.touch)
        hold.path.unlink()
        hold.path.mkdir()
        door.tick(10.0)
        assert "can't be made again" in caplog.text
        hold.path.rmdir()
        door.tick(20.0)
        assert hold.path.is_file()
        assert hold.is_whole()
