"""What this folder's programs have in common: how they are told, end, and write their JSON documents."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from draftd.daemon import machine
from draftd.daemon.bench_files import unwritable
from draftd.ipc.errors import DraftdError


def run(main: Callable[[], int | None]) -> NoReturn:
    """End with what main gives; draftd's and the system's errors are a sentence and a status, as draftd's."""
    try:
        sys.exit(main())
    except DraftdError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_status)
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def count(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def new_file(text: str) -> Path:
    """An argument that names a file to write."""
    path = Path(text)
    if fault := unwritable(path):
        raise argparse.ArgumentTypeError(fault)
    return path


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


def ended(document: dict[str, Any], answered: int) -> str:
    """A word on prompts that a run did not come to."""
    asked = document.get("asked", answered)
    return f"**The run was ended after {answered} of {asked} prompts.** " if answered < asked else ""


def libraries(document: dict[str, Any]) -> str:
    """The versions of the peers' libraries, for the end of a caption; empty where a document has none."""
    told = [f"{label} ({version})" for label, version in document.get("versions", {}).items()]
    return f" Versions: {', '.join(told)}." if told else ""
