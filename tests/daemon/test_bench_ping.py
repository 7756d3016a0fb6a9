"""The other side of the bare ping-pongs is a process that goes when the benchmark does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest


@pytest.mark.parametrize("kind", ["zmq", "unix"])
def test_it_ends_with_a_benchmark_that_is_killed(kind: str, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/s" if kind == "zmq" else f"{tmp_path}/s"
    program = (
        "import signal\nfrom draftd.daemon.bench_ping import _echoing\n"
        f"with _echoing({kind!r}, {address!r}):\n    print('begun', flush=True)\n    signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        assert benchmark.stdout.readline() == "begun\n"
        (echo,) = psutil.Process(benchmark.pid).children()
        benchmark.kill()
    _, left = psutil.wait_procs([echo], timeout=20)
    for each in left:
        each.kill()
    assert not left
