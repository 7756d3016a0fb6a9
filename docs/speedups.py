"""The speed-ups that docs/benchmarks.md has, for the pages that show some of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # which wrote them

import report_kept

PAGE = Path(__file__).with_name("benchmarks.md")


def runs() -> list[report_kept.Run]:
    """Those with the most categories, one of each title."""
    _, sections = report_kept.parsed(PAGE.read_text("utf-8").partition("## Results")[2])
    found = [run for section in sections if (run := report_kept.run(section))]
    most = max(len(run.categories) for run in found)
    return list({run.title: run for run in found if len(run.categories) == most}.values())


def by_category() -> str:
    """A column for each run, and the commands."""
    shown = runs()
    commands = dict.fromkeys(re.sub(r" --json \S+", "", run.command) for run in shown)
    rows = [["prompts", *(run.title for run in shown)]]
    for name in shown[0].categories:
        ratios = [run.speedup.get(name) for run in shown]
        rows.append([name, *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)])
    rows.append(["**geometric mean**", *(f"**{_bare(run.mean)}**" for run in shown)])
    return "\n".join([*_table(rows), "", *(f"    {command}" for command in commands)])


def by_run() -> str:
    """A row for each run: how fast the target is alone, and what drafting made of it."""
    rows = [["pair", "tokens a second alone", "speed-up (geometric mean)", "least", "most"]]
    for run in runs():
        alone = run.alone.values()
        least, *_, most = sorted((ratio, name) for name, ratio in run.speedup.items())
        ends = [f"{ratio:.2f}x {name}" for ratio, name in (least, most)]
        rows.append([run.title, f"{min(alone):.1f} to {max(alone):.1f}", f"**{_bare(run.mean)}**", *ends])
    return "\n".join(_table(rows))


def _bare(mean: str) -> str:
    """A mean without its interval."""
    return mean.partition(" ")[0]


def _table(rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
