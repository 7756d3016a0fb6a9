"""The socket file, where it can't be made again at once, and how many descriptors are taken."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from draftd.daemon.door import MOST, Door, all_descriptors
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


@pytest.mark.parametrize(("allowed", "taken"), [(4096, 4096), (2**30, MOST)])
def test_no_more_descriptors_are_taken_than_a_table_of_them_may_cost(
    allowed: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, allowed))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    all_descriptors()
    assert asked == [(taken, allowed)]
