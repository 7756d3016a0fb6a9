"""The real daemon giving way: models leave memory and come back, the governor's rungs, fewer threads."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from draftd.ipc import AsyncClient, Tokens
from draftd.ipc.errors import ModelNotFound, Overloaded
from draftd.ipc.messages import Status
from tests.daemon.conftest import Daemon, Serve, serving

PROMPT = "def add(a, b):"
ASK: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0.8, "seed": 4}

# `draftd` with readings from a file in place of this machine's, and no time between two rungs
SCRIPTED = """
import json, sys
from pathlib import Path
from draftd.daemon import cli, readings
from draftd.daemon.governing import Governing
from draftd.daemon.governor import Reading
file = Path(sys.argv.pop(1))
readings.read = lambda: Reading(**json.loads(file.read_text()))
DWELL = {"governor_dwell": 0.05}
def tick(self, now, real=Governing.tick):
    if self.settings.governor_dwell != DWELL["governor_dwell"]:
        self.adopt(self.settings.model_copy(update=DWELL))
    return real(self, now)
Governing.tick = tick
cli.main()
"""


def engines(daemon: Daemon) -> list[psutil.Process]:
    children = psutil.Process(daemon.process.pid).children()
    return [child for child in children if "draftd.daemon.worker" in child.cmdline()]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, tiny_files: Path) -> Iterator[Daemon]:
    with serving(tmp_path_factory.mktemp("citizen"), tiny_files) as start:
        yield start("--slots", "2", keep_alive="-1", speculate="false")


def test_models_leave_when_idle_and_a_request_brings_them_back_with_the_same_answer(daemon: Daemon) -> None:
    client = daemon.client()
    first = client.complete(**ASK)
    old = daemon.engine()
    assert client.complete(**ASK, keep_alive=0.1).tokens == first.tokens
    daemon.wait_for(lambda status: status.state == "unloaded" and "not in memory" in status.detail)
    assert not old.is_running()
    assert not engines(daemon)
    assert client.complete(**ASK).tokens == first.tokens
    assert client.status().state == "ready"


def test_requests_that_fall_into_an_unload_are_answered(daemon: Daemon) -> None:
    """Each request's end begins an unload, and the next request is there before the engine is gone."""
    client = daemon.client()
    answers = [client.complete(**ASK, keep_alive=0).tokens for _ in range(2)]
    assert answers[0] == answers[1]
    daemon.wait_for(lambda status: status.state == "unloaded")


def test_load_and_unload_by_command_and_by_message(daemon: Daemon) -> None:
    client, other = daemon.client(), daemon.client()
    assert command(daemon, "load", "--keep-alive", "-1") == "tiny: in memory"
    pid = client.status().engine["pid"]
    assert asyncio.run(asynchronously(daemon, "load")).engine["pid"] == pid
    with pytest.raises(ModelNotFound):
        client.load(model="other")
    stream = client.generate(prompt=PROMPT, max_tokens=400, temperature=1.0, seed=1, ignore_eos=True)
    tokens = next(stream)
    assert isinstance(tokens, Tokens)
    states: list[str] = []
    unloading = threading.Thread(target=lambda: states.append(other.unload(model="tiny").state))
    unloading.start()
    count = len(tokens.tokens) + sum(len(event.tokens) for event in stream if isinstance(event, Tokens))
    unloading.join(60)
    assert count == 400, "an unload waits for the request that runs"
    assert states == ["unloaded"]
    assert not engines(daemon)
    assert asyncio.run(asynchronously(daemon, "unload")).state == "unloaded"
    assert command(daemon, "unload") == "tiny: not in memory"


async def asynchronously(daemon: Daemon, call: str) -> Status:
    async with AsyncClient(daemon.endpoint) as client:
        return await (client.load() if call == "load" else client.unload())


def command(daemon: Daemon, *arguments: str) -> str:
    run = [sys.executable, "-m", "draftd.daemon.cli", "models", *arguments, "--endpoint", daemon.endpoint]
    return subprocess.run(run, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_the_ladder_down_and_up_again(serve: Serve, tmp_path: Path) -> None:
    readings = tmp_path / "readings.json"

    def read(**values: Any) -> None:
        partial = readings.with_suffix(".new")
        partial.write_text(json.dumps(values))
        partial.replace(readings)

    read()
    daemon = serve(
        program=[sys.executable, "-c", SCRIPTED, str(readings)],
        backend="llama_cpp",
        target="same.gguf",
        draft="same.gguf",
    )
    client = daemon.client()
    ask = {**ASK, "speculate": "model:8"}
    answer = client.complete(**ask)
    assert len(answer.stats.accepted_by_position) > 4
    read(temperature=200.0)
    status = daemon.wait_for(lambda status: status.governor["rung"] == 4)
    assert status.governor["does"] == "new requests refused"
    with pytest.raises(Overloaded, match="a sensor reads 200 °C: try again in"):
        client.complete(**ask)
    read(on_battery=True, battery=90.0)
    daemon.wait_for(lambda status: status.governor["rung"] == 1 and status.governor["why"] == "on battery")
    short = client.complete(**ask)
    assert short.tokens == answer.tokens
    assert 0 < len(short.stats.accepted_by_position) <= 4
    read(memory_available=1.0)
    daemon.wait_for(lambda status: status.state == "unloaded")
    assert daemon.status().governor["rung"] == 5
    read(memory_available=50.0)
    daemon.wait_for(lambda status: status.governor["rung"] == 0)
    assert client.complete(**ask).tokens == answer.tokens


def test_the_readings_of_this_machine_are_in_the_status(shared: Daemon) -> None:
    governor = shared.status().governor
    assert governor["threads"] == 1
    assert governor["others_use_cores"] >= 0.0
    assert 0 <= governor["rung"] <= 5
