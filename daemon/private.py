"""A daemon of one's own: `draftd serve` as a child on a socket that nobody else knows (bench, demo)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from draftd.ipc.client import Client
from draftd.ipc.errors import DraftdError, EngineFailed, Unreachable
from draftd.ipc.messages import Status

LOADING = 1800.0  # seconds a pair may take to load; the first time it is converted too
LOOK_EVERY = 0.1  # seconds
FAULTS = ("ERROR ", "CRITICAL ")  # how such a line of the log begins

# For what is timed: while others compute, or on a rung of the governor's, a daemon drafts less and with fewer
# threads.
STEADY = {"DRAFTD_FOLLOW_LOAD": "false", "DRAFTD_GOVERNOR": "false"}
# With a user's short keep_alive the models would leave before anything is asked, or between two questions.
LOADED = {"DRAFTD_KEEP_ALIVE": "-1"}
# Who starts it asks it, also where the user's own daemon is for others.
OWN = {"DRAFTD_ALLOW_USERS": ""}


@contextmanager
def private_daemon(
    pair: str,
    report: Callable[[Status], None],
    config: Path | None = None,
    variables: Mapping[str, str] | None = None,
    *,
    cold: bool = False,
) -> Iterator[str]:
    """The endpoint of a daemon that is ready; it is stopped on the way out, at a SIGTERM too.

    `report` hears how the loading goes; `variables` go before the environment's; `cold`: it has learnt
    nothing yet, and what it learns goes with it. EngineFailed says why a daemon did not start.
    """
    with tempfile.TemporaryDirectory(prefix="draftd-") as directory:
        endpoint = f"ipc://{directory}/d.sock"
        command = [sys.executable, "-P", "-m", "draftd.daemon.cli", "serve", "--pair", pair]
        command += ["--endpoint", endpoint]
        if config is not None:
            command += ["--config", str(config)]
        state = {"DRAFTD_STATE_DIR": f"{directory}/state"} if cold else {}
        log = Path(directory) / "log"
        with log.open("w") as out:
            child = subprocess.Popen(
                command,
                env={**os.environ, **LOADED, **OWN, **state, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            with _ended_by_sigterm():
                _wait_until_ready(child, endpoint, log, report)
                yield endpoint
        except DraftdError as error:
            error.args = (error.message + _worst(log),)
            raise
        finally:
            child.terminate()
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM as an exception, so that what was begun is ended; signals are the main thread's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_until_ready(
    child: subprocess.Popen[bytes], endpoint: str, log: Path, report: Callable[[Status], None]
) -> None:
    end = time.monotonic() + LOADING
    while time.monotonic() < end:
        if child.poll() is not None:
            raise EngineFailed(f"the daemon ended with status {child.returncode}: {_last_words(log)}")
        try:
            with Client(endpoint) as client:
                while (status := client.status()).state != "ready":
                    if status.state == "failed" or time.monotonic() > end:
                        raise EngineFailed(f"the daemon did not load the pair: {status.detail}")
                    report(status)
                    time.sleep(LOOK_EVERY)
                report(status)
                return
        except Unreachable:  # not bound yet, or it has just died, which the next turn sees
            time.sleep(LOOK_EVERY)
    raise EngineFailed(f"the daemon was not ready within {LOADING:.0f} seconds: {_last_words(log)}")


def _worst(log: Path) -> str:
    """What a daemon's log, which goes with it, has to say of its own faults."""
    faults = [line for line in log.read_text("utf-8", "replace").splitlines() if line.startswith(FAULTS)]
    return f"; its log has: {faults[-1]}" if faults else ""


def _last_words(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
