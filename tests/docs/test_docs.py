"""The documents against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from draftd.daemon.settings import Settings
from draftd.ipc import messages, parts
from draftd.ipc.errors import CODES

ROOT = Path(__file__).parents[2]


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_changelog_names_every_message_field_setting_and_code() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text))
    kinds = [*messages.CLIENT_TYPES.values(), *messages.DAEMON_TYPES.values(), parts.Usage, parts.Stats]
    fields = {name for kind in kinds for name in kind.model_fields} - {"id", "type"}
    expected = {*messages.CLIENT_TYPES, *messages.DAEMON_TYPES, *fields, *Settings.model_fields, *CODES}
    assert expected - named == set()
