"""What the JSON documents of this folder's programs have in common."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from draftd.daemon import machine


def begin(kind: str, **more: Any) -> dict[str, Any]:
    """A document of this run: what it is, by which command, on what; then what it measured."""
    command = machine.command("python", sys.argv[0])
    return {"kind": kind, "command": command, "machine": machine.describe(), **more}


def tell(words: str) -> None:
    """How far it is, on a line of its own."""
    print(f"[{time.strftime('%H:%M:%S')}] {words}", file=sys.stderr, flush=True)


def without_folders(command: str) -> str:
    """A command line for a page: where its files lay says nothing."""
    return re.sub(r"""(?<=[\s="'(])/[^\s"']*/""", "", command)
