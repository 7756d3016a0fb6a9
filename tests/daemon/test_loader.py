"""A real tiny pair, loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
