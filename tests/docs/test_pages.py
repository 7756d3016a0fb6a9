"""Links, commands, code and names in every page against what there is."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from draftd.daemon.settings import Settings
from tests.docs.commands import fault, shown
from tests.docs.pages import PAGES, ROOT, anchors, blocks, name, prose

PARTS = (".ci", "bench", "daemon", "drafts", "examples", "integrations", "ipc", "models", "systemd", "tests")
FILES = re.compile(rf"`((?:docs|{'|'.join(map(re.escape, PARTS))})/[\w./-]+\.\w+)[:`]")
each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@pytest.fixture(scope="module")
def words() -> set[str]:
    """Every word of the project's code."""
    files = [file for folder in PARTS for file in (ROOT / folder).rglob("*") if file.is_file()]
    files += [ROOT / "pyproject.toml", ROOT / "Makefile"]
    texts = [file.read_text("utf-8", "replace") for file in files]
    return set(re.findall(r"\w+", "\n".join(texts)))


@each_page
def test_links_and_file_names_lead_somewhere(page: Path) -> None:
    text = prose(page)
    links = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)", text)
    links += re.findall(r"""(?:src|srcset|href)=["'](?!https?:)([^"'\s]+)""", text)
    missing = [each for each in FILES.findall(text) if not (ROOT / each).exists()]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    faults = {" ".join(command): wrong for command in shown(page) if (wrong := fault(command))}
    assert faults == {}


@pytest.mark.parametrize(
    "command",
    [
        "draftd sing",
        "draftd serve --loudly",
        "draftd status now",
        "draftd models pull --no-tune smollm2 qwen --what",
        "draftd --verbose",
        "make coffee",
        "make test ARG=1",
        "python bench/none.py",
        "python -m tests.none",
    ],
)
def test_a_command_that_does_not_exist_is_seen(command: str) -> None:
    assert fault(command.split())


@each_page
def test_code_can_be_read(page: Path) -> None:
    for number, block in enumerate(blocks(page)):
        if block.language == "python":
            compile(block.text, f"{page.name}, block {number}", "exec")
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "toml":
            assert tomllib.loads(block.text)


@each_page
def test_names_are_those_of_the_code(page: Path, words: set[str]) -> None:
    """Settings, fields, options and variables: what looks like a name of the code is one."""
    text = prose(page)
    inline = set(re.findall(r"`([^`\n]+)`", text))
    named = {each for each in inline if re.fullmatch(r"[a-z]{2,}(?:_[a-z0-9]{2,})+", each)}
    named |= {match[1] for each in inline if (match := re.match(r"([a-z_]+) = \S", each))}
    named |= set(re.findall(r"\bDRAFTD_[A-Z_]+\b", page.read_text("utf-8")))
    settings = {f"DRAFTD_{setting.upper()}" for setting in Settings.model_fields}
    metrics = {each for each in named if each.startswith("draftd_")}  # their own test holds these
    assert named - words - settings - metrics == set()


def test_pages_are_found() -> None:
    assert {"README.md", "docs/architecture.md", "ipc/PROTOCOL.md", "examples/README.md"} <= {
        name(page) for page in PAGES
    }
