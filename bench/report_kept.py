"""What docs/benchmarks.md keeps of earlier runs: sections, and rows and columns of tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

PICTURE = re.compile(r"^!\[[^\]]*\]\(([\w.-]+\.svg)\)$", re.MULTILINE)  # a line that the report wrote
ELSEWHERE = re.compile(r"\n\n(?:Measured|Simulated) on another machine: (.*)")


@dataclass(frozen=True)
class Run:
    """What a section of `draftd bench` says; a category of which no speed is known has no figure."""

    title: str  # pair, backend, sampling
    command: str
    categories: list[str]
    alone: dict[str, float]  # the target alone, tokens a second
    speedup: dict[str, float]  # over that
    mean: str  # geometric, with its interval


def parsed(results: str) -> tuple[str, list[str]]:
    """The machine's line, and the sections, each from its `### ` to the next."""
    before, *sections = re.split(r"^(?=### )", results, flags=re.MULTILINE)
    return before.strip().partition("\n")[0], [section.strip() for section in sections]


def heading(section: str) -> str:
    """What identifies a section."""
    return section.partition("\n")[0].removeprefix("### ")


def merged(old: Sequence[T], new: Sequence[T], key: Callable[[T], Hashable]) -> list[T]:
    """The old ones in their order, those of a new one's key replaced in place; other new ones at the end."""
    replaced = {key(each) for each in new}
    made: list[T] = []
    placed = set()
    for each in old:
        if (this := key(each)) not in replaced:
            made.append(each)
        elif this not in placed:
            placed.add(this)
            made += [every for every in new if key(every) == this]
    return made + [each for each in new if key(each) not in placed]


def moved(section: str, there: str, here: str) -> str:
    """A kept section, which says where it was made, `there` if it says nothing, unless that is `here`."""
    if found := ELSEWHERE.search(section):
        return section.replace(found[0], "") if found[1] == here else section
    if there in ("", here):
        return section
    made = "Simulated" if heading(section).startswith("SIMULATED") else "Measured"
    picture = PICTURE.search(section)
    end = picture.start() if picture else len(section)
    said = [section[:end].rstrip(), f"{made} on another machine: {there}", section[end:]]
    return "\n\n".join(part for part in said if part)


def rows(section: str) -> list[dict[str, str]]:
    """The rows of a section's first table, each cell by its column's head."""
    lines = re.search(r"(?:^\|.*\n?)+", section, re.MULTILINE)
    if not lines:
        return []
    heads, _, *others = [
        [cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines[0].splitlines()
    ]
    return [dict(zip(heads, cells, strict=True)) for cells in others]


def columns(section: str) -> list[tuple[str, dict[str, str]]]:
    """The columns of such a table, by head, but the first; each cell by its row's first."""
    found = rows(section)
    first, *heads = list(found[0]) if found else [""]
    return [(head, {row[first]: row[head] for row in found}) for head in heads]


def run(section: str) -> Run | None:
    """A section of `draftd bench`, which is known by its table; None for any other."""
    own = [row for row in rows(section) if {"category", "alone", "speed-up"} <= row.keys()]
    by_name = {row["category"]: row for row in own}
    command = re.search(r"^ {4}(.+)$", section, re.MULTILINE)
    means = [row["speed-up"] for name, row in by_name.items() if name.startswith("**geometric mean")]
    if not (command and means):
        return None
    categories = [name for name in by_name if not name.startswith("*")]
    alone = _numbers({name: by_name[name]["alone"] for name in categories})
    speedup = _numbers({name: by_name[name]["speed-up"] for name in categories})
    return Run(heading(section), command[1], categories, alone, speedup, means[0].replace("*", ""))


def _numbers(cells: dict[str, str]) -> dict[str, float]:
    """The cells that hold one, in whatever unit."""
    found = {name: re.match(r"[\d.]+", cell) for name, cell in cells.items()}
    return {name: float(number[0]) for name, number in found.items() if number}
