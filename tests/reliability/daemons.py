"""Daemons for the programs of this folder: over tiny models, or over a pair of the cache."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.daemon.conftest import Daemon, write_models


def make_files(folder: str) -> tuple[Path, Path]:
    """A folder for the daemon and one with the tiny models."""
    root = Path(folder) / "tiny"
    root.mkdir()
    write_models(root)
    return Path(folder), root


@contextlib.contextmanager
def serving_pair(folder: Path, pair: str) -> Iterator[Daemon]:
    """A daemon over a pair of the cache, with the target in transformers and bf16."""
    endpoint = f"ipc://{folder}/d.sock"
    command = [sys.executable, "-m", "draftd.daemon.cli", "serve", "--pair", pair, "--endpoint", endpoint]
    environment = {
        **os.environ,
        "DRAFTD_BACKEND": "transformers",
        "DRAFTD_CONTEXT": "1024",
        "DRAFTD_THREADS": "1",
        "DRAFTD_STATE_DIR": str(folder / "state"),
    }
    lines = folder / "log"
    with lines.open("w") as out:

        def launch() -> subprocess.Popen[str]:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out, text=True)

        process = launch()
    try:
        daemon = Daemon(process, endpoint, lines, launch)
        daemon.wait_ready()
        yield daemon
    finally:
        process.terminate()
        process.wait(30)
