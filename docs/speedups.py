"""The speed-ups that docs/benchmarks.md has, for the pages that show some of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("benchmarks.md")


@dataclass(frozen=True)
class Run:
    """A run of `draftd bench`: by category the target alone in tokens a second, and the speed over that."""

    title: str  # pair, backend, sampling
    command: str
    alone: dict[str, float]
    speedup: dict[str, float]
    mean: float  # geometric


def runs() -> list[Run]:
    """The newest of the runs with the most categories, one of each title."""
    found = [run for section in PAGE.read_text("utf-8").split("\n### ")[1:] if (run := _read(section))]
    most = max(len(run.speedup) for run in found)
    return list({run.title: run for run in found if len(run.speedup) == most}.values())


def _read(section: str) -> Run | None:
    command = re.search(r"^    ((?:\w+=\S+ )*draftd bench .*)$", section, re.MULTILINE)
    mean = re.search(r"\*\*geometric mean of \d+\*\* \| \| \| \*\*([\d.]+)x\*\*", section)
    rows = re.findall(r"^\| ([^|*]+) \| ([\d.]+) \| [\d.]+ \| ([\d.]+)x \|", section, re.MULTILINE)
    if not (command and mean and rows):
        return None  # a comparison with peers, a simulation
    alone = {name: float(speed) for name, speed, _ in rows}
    speedup = {name: float(ratio) for name, _, ratio in rows}
    return Run(section.partition("\n")[0], command[1], alone, speedup, float(mean[1]))


def by_category() -> str:
    """A column for each run, and the commands."""
    shown = runs()
    commands = dict.fromkeys(re.sub(r" --json \S+", "", run.command) for run in shown)
    rows = [["prompts", *(run.title for run in shown)]]
    for name in shown[0].speedup:
        ratios = [run.speedup.get(name) for run in shown]
        rows.append([name, *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios)])
    rows.append(["**geometric mean**", *(f"**{run.mean:.2f}x**" for run in shown)])
    return "\n".join([*_table(rows), "", *(f"    {command}" for command in commands)])


def by_run() -> str:
    """A row for each run: how fast the target is alone, and what drafting made of it."""
    rows = [["pair", "tokens a second alone", "speed-up (geometric mean)", "least", "most"]]
    for run in runs():
        alone = run.alone.values()
        least, *_, most = sorted((ratio, name) for name, ratio in run.speedup.items())
        ends = [f"{ratio:.2f}x {name}" for ratio, name in (least, most)]
        rows.append([run.title, f"{min(alone):.1f} to {max(alone):.1f}", f"**{run.mean:.2f}x**", *ends])
    return "\n".join(_table(rows))


def _table(rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
