"""The daemons of the daemon's own tests, and plugins installed as their users install them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.conftest import Daemon, serving, tool_files

__all__ = ["tool_files"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tool_files: Path) -> Iterator[Daemon]:
    """One daemon for the tests of a file; its target runs in llama.cpp, which is there in a second."""
    with serving(tmp_path_factory.mktemp("shared"), tool_files) as start:
        yield start("--slots", "2", backend="llama_cpp", target="target.gguf", context="1024")


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """install("llm-draftd"): the folder in which a package of integrations/ is now installed."""

    def done(name: str) -> Path:
        where = tmp_path_factory.mktemp(name)
        source, target = where / "source", where / "installed"
        shutil.copytree(ROOT / "integrations" / name, source)  # a build leaves files beside what it builds
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        quiet = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([*pip, "--target", str(target), str(source)], check=True, env=quiet, timeout=100)
        return target

    return done


@contextmanager
def paused(daemon: Daemon) -> Iterator[None]:
    """No answer can end here, however slow the test is."""
    engine = daemon.engine()
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()
