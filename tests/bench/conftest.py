"""The programs of bench/, as modules, and a pair small enough to run them with."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from draftd.drafts.base import Draft
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="session", autouse=True)
def null_files_closed() -> Iterator[None]:
    """llama-cpp-python opens /dev/null twice at its import and leaves it to Python's end, which warns of it.

    By then it knows only the filters of the last warning, which may have been a test's.
    """
    yield
    if (opened := sys.modules.get("llama_cpp._utils")) is not None:
        opened.outnull_file.close()
        opened.errnull_file.close()


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A program by its name, found as Python finds what lies beside a script."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.fixture(scope="session")
def gguf_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """target.gguf (fp32), and draft.gguf that often agrees with it."""
    root = tmp_path_factory.mktemp("bench")
    write_gguf(write_tiny(root / "target"), root / "target.gguf")
    write_gguf(write_tiny(root / "noisy", noise=0.15), root / "draft.gguf")
    return root


@pytest.fixture
def tiny_pair(tmp_path: Path, gguf_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair `tiny` of them in this process's environment, which a daemon inherits."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[models.target]\npath = "{gguf_files}/target.gguf"\n'
        f'[models.draft]\npath = "{gguf_files}/draft.gguf"\n'
        '[pairs.tiny]\ntarget = "target"\ndraft = "draft"\nbackend = "llama_cpp"\n'
    )
    settings = {"CATALOG": catalog, "CONFIG": os.devnull, "CACHE_DIR": tmp_path, "STATE_DIR": tmp_path}
    for name, value in {**settings, "CONTEXT": "512", "THREADS": "1"}.items():
        monkeypatch.setenv(f"DRAFTD_{name}", str(value))


@pytest.fixture
def write_peer(
    program: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Write a peer `a_peer`, beside the lines.py that there is, where peers are looked for."""
    process = program("peer_process")
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "lines.py").write_text((process.PEERS / "lines.py").read_text("utf-8"), "utf-8")
    monkeypatch.setattr(process, "PEERS", folder)

    def write(text: str) -> None:
        (folder / "a_peer.py").write_text(text, "utf-8")

    return write


@pytest.fixture
def run_main(
    program: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ModuleType]:
    """Run a program of bench/ with these arguments, in this process."""

    def run(name: str, *arguments: str | Path) -> ModuleType:
        module = program(name)
        monkeypatch.setattr(sys, "argv", [f"bench/{name}.py", *map(str, arguments)])
        module.main()
        return module

    return run


@pytest.fixture
def answer(program: Callable[[str], ModuleType]) -> Any:
    """A prompt of three tokens, an answer of 4, 5, 6, and what the draft chose behind some texts."""
    rows = np.zeros((3, 9), np.float32)
    rows[[0, 1, 2], [4, 5, 6]] = 1.0
    made: Any = program("recording").Answer("a", [1, 2, 3], rows)
    made.drafted = {((), (4,)): (5, 0.9), ((), (4, 5)): (7, 0.8), ((), (4, 5, 7)): (8, 0.7)}
    return made


@pytest.fixture
def place(program: Callable[[str], ModuleType]) -> Any:
    """A simulated place of long passes."""
    times = {"pass_ms": 1e6, "row_ms": 1e4, "draft_ms": 1e5, "read_ms": 1e4}  # no hiccup here is as long
    return replace(program("places").PLACES[0], name="here", **times)


def nobody() -> Draft:
    """The real draft of a recording that has all."""
    raise AssertionError("not recorded")


def counted(program: Callable[[str], ModuleType], prompt: int, tokens: int) -> Any:
    """An answer of 1, 2, 3 and so on, for a prompt of so many tokens; nothing was drafted yet."""
    rows = np.zeros((tokens, 200), np.float32)
    rows[np.arange(tokens), np.arange(tokens) + 1] = 1.0
    return program("recording").Answer("a", list(range(prompt)), rows)
