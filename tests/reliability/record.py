"""Figures on docs/reliability.md: each program of this folder writes its own part, and nobody else does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import psutil

from draftd.daemon import machine

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def record(name: str, rows: list[tuple[str, str]]) -> None:
    """Print what was measured; with RECORD=1 also put it in place of what the page says under that name."""
    table = "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])
    print(table, flush=True)
    if os.environ.get("RECORD") == "1":
        page = PAGE.read_text("utf-8")
        part = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        changed, count = part.subn(lambda _: f"{table}\n", page, count=1)
        if count != 1:
            raise SystemExit(f"{PAGE.name} has no part {name}")
        PAGE.write_text(changed, "utf-8")


def here() -> tuple[str, str]:
    """A row: what it ran on."""
    gib = psutil.virtual_memory().total / 2**30
    return "machine", f"{machine.cores()} of {os.cpu_count()} cores ({machine.cpu()[0]}), {gib:.0f} GiB"
