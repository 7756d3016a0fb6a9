"""Writes what pages say of the code and of measurements; --check only compares.

docs/configuration.md from the settings' types and the commands' options; from docs/benchmarks.md the tables
that README.md and docs/pairs.md have between `<!-- speed-ups -->` and `<!-- end -->`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

for name in [name for name in os.environ if name.startswith(("XDG_", "DRAFTD_"))]:
    del os.environ[name]  # the defaults are everybody's, not this shell's

import speedups  # noqa: E402
import typer  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from draftd.daemon.cli import app  # noqa: E402
from draftd.daemon.settings import Settings, default_config_path  # noqa: E402

DOCS = Path(__file__).parent
PART = re.compile(r"(?<=<!-- speed-ups -->\n).*?(?=<!-- end -->)", re.DOTALL)
NAMES = {str: "text", int: "integer", bool: "true or false", float: "number", Path: "path"}
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def pages() -> dict[Path, str]:
    """Each page as it should be."""
    made = {DOCS / "configuration.md": configuration()}
    tables = {DOCS.parent / "README.md": speedups.by_category(), DOCS / "pairs.md": speedups.by_run()}
    for page, table in tables.items():
        before, *parts = PART.split(page.read_text("utf-8"))
        made[page] = f"{before}{table}\n{parts[-1]}" if parts else before
        if (count := len(parts)) != 1:
            sys.exit(f"{page.name} has {count} places for speed-ups, and should have one")
    return made


def configuration() -> str:
    return "\n".join(
        [
            "# Configuration",
            "",
            "<!-- written by docs/generate.py from the settings and commands themselves: change those -->",
            "",
            f"The file is TOML, by default `{shown(default_config_path())}`; `--config FILE` or",
            "`DRAFTD_CONFIG` name another, which must be there. A `DRAFTD_*` variable goes before the file,",
            "a command-line option before both. An unknown key is an error that lists the valid ones.",
            "",
            "| key | variable | type | default | what it is |",
            "|---|---|---|---|---|",
            *(setting(name, info) for name, info in Settings.model_fields.items()),
            "",
            "`DRAFTD_CATALOG` names the file of your own models and pairs, which `draftd models add` writes.",
            "",
            "# Commands",
            "",
            *commands("draftd", typer.main.get_command(app)),
        ]
    )


def setting(name: str, info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    limits = [
        f"{words} {getattr(item, limit)}"
        for item in info.metadata
        for limit, words in LIMITS.items()
        if hasattr(item, limit)
    ]
    kind = ", ".join([type_name(info.annotation), *limits])
    cells = [f"`{name}`", f"`DRAFTD_{name.upper()}`", kind, f"`{shown(default)}`", info.description or ""]
    return "| " + " | ".join(cells) + " |"


def type_name(annotation: Any) -> str:
    if get_origin(annotation) is list:
        return f"list of {type_name(get_args(annotation)[0])}"
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if not parts:
        return NAMES[annotation]
    if all(isinstance(part, str) for part in parts):
        return ", ".join(f"`{part}`" for part in parts)
    return " or ".join(type_name(part) for part in parts)


def shown(value: Any) -> str:
    """A default as the file spells it; the home directory as ~."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(str(Path.home()), "~")


def commands(path: str, command: Any) -> list[str]:
    """A section for each command under this one, in the order of `--help`."""
    context = typer.Context(command, info_name=path)
    if hasattr(command, "list_commands"):
        lines: list[str] = []
        for name in command.list_commands(context):
            lines += commands(f"{path} {name}", command.resolve_command(context, [name])[1])
        return lines
    lines = [f"## `{path}`", "", " ".join((command.help or "").split()), ""]
    rows = [row for parameter in command.get_params(context) if (row := option(parameter))]
    if rows:
        lines += ["| option | what it is |", "|---|---|", *rows, ""]
    return lines


def option(parameter: Any) -> str:
    """A row of the table, from the parts of an option that do not change with typer's version."""
    if "--help" in parameter.opts or parameter.name in ("install_completion", "show_completion"):
        return ""
    argument = parameter.param_type_name == "argument"
    name = parameter.name.upper() if argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
    notes = ["required"] if parameter.required else []
    if parameter.default not in (None, False) and not callable(parameter.default):
        notes.append(f"default {shown(parameter.default)}")
    text = (parameter.help or "").replace("|", "\\|")
    text = " ".join([text, f"({', '.join(notes)})"] if notes else [text]).strip()
    return f"| `{name}` | {text} |"


def main() -> int:
    status = 0
    for page, made in pages().items():
        if "--check" not in sys.argv[1:]:
            page.write_text(made, "utf-8")
        elif not page.exists() or page.read_text("utf-8") != made:
            print(f"{page.name} is not up to date: run `python docs/generate.py`", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
