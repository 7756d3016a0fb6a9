"""`draftd cache clear` where no daemon answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftd.daemon import cache_cli, forget
from draftd.ipc.endpoint import prepare
from draftd.ipc.errors import Unreachable


def test_files_are_removed_only_where_no_daemon_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleared: list[Path] = []

    def clear(state_dir: Path, figures: bool) -> int:
        cleared.append(state_dir)
        return 0

    monkeypatch.setattr(forget, "clear", clear)
    monkeypatch.setenv("DRAFTD_CONFIG", os.devnull)
    monkeypatch.setenv("DRAFTD_STATE_DIR", str(tmp_path / "state"))
    address = f"ipc://{tmp_path}/d.sock"
    with prepare(address), pytest.raises(Unreachable, match="a daemon is there, so nothing was removed"):
        cache_cli.clear(endpoint=address)
    assert cleared == []
    cache_cli.clear(endpoint=address)
    assert cleared == [tmp_path / "state"]
    assert capsys.readouterr().out == f"removed 0 files of {tmp_path / 'state'}; no daemon is running\n"
