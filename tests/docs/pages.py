"""The project's pages, and what of them is code."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "examples", "integrations", "ipc")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SHELL = ("", "sh", "bash", "shell", "console")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:(?: {4}|\t)[^\n]*\n|\n)+)")


@dataclass(frozen=True)
class Block:
    """Code of a page: its language, "" if none is told, and its text."""

    language: str
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its blocks of code: where links and headings are."""
    return INDENTED.sub("\n", FENCE.sub("", page.read_text("utf-8")))


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks, then indented ones, which have no language."""
    text = page.read_text("utf-8")
    for _, language, code in FENCE.findall(text):
        yield Block(language, textwrap.dedent(code))
    for code in INDENTED.findall(FENCE.sub("", text)):
        yield Block("", textwrap.dedent(code))


def anchors(page: Path) -> set[str]:
    """What a link to the page can name after #: its headings, as GitHub spells them."""
    seen = Counter[str]()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(page), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        slug = words.replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found
