"""What the JSON documents of this folder's programs have in common."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

from draftd.daemon import machine


def begin(kind: str, **more: Any) -> dict[str, Any]:
    """A document of this run: what it is, by which command, on what; then what it measured."""
    command = shlex.join(["python", *sys.argv])
    return {"kind": kind, "command": command, "machine": machine.describe(), **more}


def without_folders(command: str) -> str:
    """A command line for a page: where its files lay says nothing."""
    return re.sub(r"(?<=[\s=])/\S*/", "", command)
