"""The import directions of docs/architecture.md, read from the source of every module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("daemon", "models", "drafts", "ipc", "integrations")
ALLOWED = {
    "ipc": {"draftd.ipc"},
    "models": {"draftd.models", "draftd.ipc.errors"},
    "drafts": {"draftd.drafts", "draftd.ipc.errors"},
    "integrations": {"draftd.ipc"},
    "daemon": {"draftd.daemon", "draftd.models", "draftd.drafts", "draftd.ipc"},
}
MODULES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]


def _imports(source: str) -> Iterator[str]:
    """Full names of what a module's code imports from draftd, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in ("draftd", *PARTS))


def _allowed(part: str, name: str) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in ALLOWED[part])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(ROOT).parts[0]
    assert [name for name in _imports(path.read_text("utf-8")) if not _allowed(part, name)] == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("ipc", "from draftd.daemon import settings"),
        ("ipc", "from draftd import models"),
        ("models", "from draftd.drafts.base import Draft"),
        ("models", "import draftd.ipc.messages"),
        ("models", "from draftd.ipc import Client"),
        ("drafts", "def f():\n    import draftd.models.base"),
        ("drafts", "from models import base"),
        ("integrations", "from draftd.daemon import settings"),
    ],
)
def test_the_rule_sees_what_it_forbids(part: str, source: str) -> None:
    assert not all(_allowed(part, name) for name in _imports(source))


def test_every_part_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_child_takes_no_module_from_the_current_directory(part: str) -> None:
    """Behind -m and -c that comes first: a json.py of the user's would be run in the library's place."""
    sources = [path.read_text("utf-8") for path in MODULES if path.relative_to(ROOT).parts[0] == part]
    options = [option for text in sources for option in re.findall(r"sys\.executable,\s*(\S+)", text)]
    assert all(option == '"-P",' for option in options)
    assert bool(options) == (part in ("daemon", "models", "integrations")), "they are found"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("draftd.ipc.errors", {"zmq", "pydantic", "msgpack"}),
        ("draftd.ipc.client", {"torch", "llama_cpp", "transformers", "numpy", "typer"}),
        ("draftd.daemon.cli", {"torch", "llama_cpp", "transformers", "numpy", "zmq", "pydantic", "rich"}),
        ("draftd.daemon.front", {"torch", "llama_cpp", "transformers", "numpy"}),
    ],
)
def test_a_module_brings_no_more_than_it_needs(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*{absent!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
