"""`draftd doctor`: one line each on what the daemon stands on, with the mend where something is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from draftd.daemon import checks, machine
from draftd.daemon.checks import Check

COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


def doctor(
    pair: Annotated[
        str | None, typer.Option(help="The pair to check for; default: the configured one.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The configuration file to check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of lines.")] = False,
) -> None:
    """Check this machine: tools, CPU, libraries, memory, socket directory and model files.

    The exit status is 1 if a line says FAIL.
    """
    console = Console(highlight=False)
    found = []
    for check in examine(pair, config):
        found.append(check)
        if not as_json:  # at once: some take seconds
            console.print(line(check), soft_wrap=True)
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=1, ensure_ascii=False))
    if any(check.state == "FAIL" for check in found):
        raise typer.Exit(1)


def line(check: Check) -> Text:
    text = Text.assemble((f"{check.state:<6}", COLOURS[check.state]), f"{check.name}: {check.found}")
    return text.append(f"; {check.mend}") if check.mend else text


def examine(pair: str | None, config: Path | None) -> Iterator[Check]:
    """Every check in turn; a client-only installation is spared those that only the engine needs."""
    yield checks.python()
    settings, check = checks.configuration(config, pair)
    yield check
    yield checks.socket(settings)
    missing = [name for name in checks.ENGINE if machine.package_version(name) is None]
    if len(missing) == len(checks.ENGINE):
        yield Check(
            "engine", "warn", "not installed: this machine can be a client only", f"run {checks.INSTALL}"
        )
        return
    for name in checks.ENGINE:
        yield checks.package(name)
    yield checks.compiler()
    yield checks.cpu()
    if "llama-cpp-python" not in missing:
        yield checks.amx()
    if "torch" not in missing:
        yield checks.gpu()
    yield checks.directories(settings)
    yield from checks.pair(settings)
