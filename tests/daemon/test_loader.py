"""A real tiny pair, loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from draftd.daemon import loader
from draftd.daemon.settings import Settings
from draftd.models.catalog import Pair

PROGRAM = """
import sys
from draftd.daemon.loader import load
from draftd.daemon.settings import load as settings
load(settings(None), lambda fraction, stage: None)
assert "transformers.utils.chat_template_utils" in sys.modules
"""


@pytest.mark.usefixtures("tiny")
def test_what_a_chat_imports_is_there_once_the_pair_is() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_draft_is_opened_again_from_the_file_that_was_tuned_since(
    tiny: tuple[Pair, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = tmp_path / "draft.gguf", tmp_path / "tuned.gguf"
    loaded = loader.load(tiny[1], lambda fraction, stage: None)
    before.rename(after)
    monkeypatch.setattr(loader, "draft_file", lambda *asked: (after, "small (tuned: Q4_0)"))
    assert loaded.open_draft is not None
    loaded.drafting.set_model(None)
    loaded.drafting.set_model(loaded.open_draft())
    assert loaded.drafting.model is not None
    loaded.drafting.set_model(None)
    loaded.target.close()
