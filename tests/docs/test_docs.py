"""The documents against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from draftd.daemon.metrics import STATES
from draftd.daemon.reload import ANSWERS, FIXED, FRONT_ONLY
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


def test_the_reload_table_says_of_each_setting_what_a_change_does() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = page.partition("**Reload**")[2].partition("**Stop**")[0]
    rows = [set(re.findall(r"`(\w+)`", line.split("|")[1])) for line in table.splitlines() if line[:1] == "|"]
    named = [row for row in rows if row]
    assert sorted(name for row in named for name in row) == sorted(FRONT_ONLY | ANSWERS | FIXED)
    assert ANSWERS in named
    assert FIXED in named


def test_the_page_names_every_state() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `draftd_state` |")]
    assert row.endswith(f": {', '.join(STATES)} |")
