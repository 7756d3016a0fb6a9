"""Commands that pages show, held to the command line and the Makefile that there are."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer
from typer.main import get_command

from draftd.daemon.cli import app
from tests.docs.pages import ROOT, SHELL, blocks, prose

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"\$\((?:or \$\(|if \$\()?([A-Z]+)\b", MAKEFILE))
ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:draftd|make|python) [^`]+)`")


def shown(page: Path) -> Iterator[list[str]]:
    """The words of each command in a page's blocks of shell and in its inline code."""
    texts = [block.text for block in blocks(page) if block.language in SHELL]
    for text in [*texts, *(each.replace("\\|", "|") for each in INLINE.findall(prose(page)))]:
        for line in text.replace("\\\n", " ").splitlines():
            yield from _commands(line)


def fault(words: Sequence[str]) -> str:
    """What is wrong with a command, "" if nothing is, or if it is of another program."""
    program, arguments = words[0].rsplit("/", 1)[-1], list(words[1:])
    if program == "draftd":
        return _draftd_fault(arguments)
    if program == "make":
        return _make_fault(arguments)
    if program.startswith("python") and arguments:
        return _python_fault(arguments)
    return ""


def _commands(line: str) -> Iterator[list[str]]:
    """A line's commands without what stands before their names: variables, sudo, env."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return  # output, with an apostrophe in it
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("();<>|&"):
            if command:
                yield command
            command = []
        elif command or not (ASSIGNMENT.fullmatch(word) or word in ("sudo", "env", "$", "do")):
            command.append(word)
            if command[:1] == ["-u"] and len(command) == 2:
                command = []  # sudo -u NAME


def _draftd_fault(words: list[str]) -> str:
    command = get_command(app)
    context = typer.Context(command, info_name="draftd")
    try:
        while True:
            _, words, _ = command.make_parser(context).parse_args(words)
            if not words or not hasattr(command, "resolve_command"):
                return f"unexpected {words[0]}" if words else ""
            name, command, words = command.resolve_command(context, words)
            context = typer.Context(command, parent=context, info_name=name)
    except Exception as error:  # typer's own copy of click has the class
        return str(error)


def _make_fault(words: list[str]) -> str:
    for word in words:
        name = word.partition("=")[0]
        if name not in (VARIABLES if ASSIGNMENT.fullmatch(word) else TARGETS):
            return f"the Makefile has no {name}"
    return ""


def _python_fault(words: list[str]) -> str:
    if words[0] == "-m" and words[1].split(".")[0] in ("tests", "draftd"):
        return "" if importlib.util.find_spec(words[1]) else f"there is no module {words[1]}"
    if words[0].endswith(".py") and "/" in words[0] and not (ROOT / words[0]).exists():
        return f"there is no {words[0]}"
    return ""
