"""The errors that docs/troubleshooting.md quotes, in bold, are the code's own words."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text("utf-8")
BOLD = re.findall(r"^\*\*(`.*?`)\*\*", PAGE, re.DOTALL | re.MULTILINE)
QUOTES = [" ".join(quote.split()) for bold in BOLD for quote in re.findall(r"`([^`]+)`", bold)]


@pytest.fixture(scope="module")
def words() -> str:
    """What the code can say: the fixed parts of its texts, a line each, without the marks around commands."""
    folders = ("daemon", "models", "drafts", "ipc")
    files = [file for folder in folders for file in (ROOT / folder).glob("*.py")]
    trees = [ast.parse(file.read_text("utf-8")) for file in [*files, ROOT / ".ci/build-llama"]]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    return "\n".join([*found, (ROOT / "Makefile").read_text("utf-8")]).replace("`", "")


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_error_is_one_of_the_code(quote: str, words: str) -> None:
    """Each part of it, between the … that stand for what is put in."""
    assert [part for part in quote.split("…") if part.strip(" ;:") not in words] == []


def test_quotes_are_found() -> None:
    assert len(QUOTES) >= 20
