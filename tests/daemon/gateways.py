"""`draftd gateway` as a child, for the tests of what speaks to it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.contextmanager
def gateway(endpoint: str, *options: str, listen: str | None = None) -> Iterator[str]:
    """The address of a gateway that has said that it listens; by default at a port of its own."""
    listen = listen or free_address()
    command = [
        sys.executable,
        "-m",
        "draftd.daemon.cli",
        "gateway",
        "--listen",
        listen,
        "--endpoint",
        endpoint,
    ]
    child = subprocess.Popen(
        [*command, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    try:
        line = child.stderr.readline()
        assert line == f"gateway at {listen}\n", line + child.stderr.read()
        yield f"http://{listen}"
    finally:
        child.terminate()
        try:
            child.wait(20)
        finally:
            child.kill()
            child.wait()
            child.stderr.close()


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
