from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from draftd.daemon import machine


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_told_of_a_checkout_of_draftd_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    own = tmp_path / "daemon" / "machine.py"
    own.parent.mkdir()
    own.write_text("first", "utf-8")
    monkeypatch.setattr(machine, "__file__", str(own))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() is None
    git("init")
    git("add", "daemon")
    git("commit", "-m", "first")
    found = machine.commit()
    assert found is not None
    assert len(found) >= 7
    own.write_text("second", "utf-8")
    assert machine.commit() == found + "+"
    other = tmp_path / "environment" / "machine.py"  # draftd installed within another project's checkout
    other.parent.mkdir()
    other.write_text("second", "utf-8")
    monkeypatch.setattr(machine, "__file__", str(other))
    assert machine.commit() is None
