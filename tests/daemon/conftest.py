"""Daemons for the tests: real ones over tiny models, without a download, and a scripted one; a tiny pair."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from draftd.daemon import settings as configuration
from draftd.daemon.settings import Settings
from draftd.ipc import Client
from draftd.ipc.errors import Unreachable
from draftd.ipc.messages import Status
from draftd.models.catalog import Pair, load_catalog
from tests.daemon.desk import Desk, desk
from tests.daemon.gateways import gateway
from tests.ipc.scripted import ScriptedDaemon
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

WAIT = 60.0  # seconds until a daemon must be where a test wants it
# For serve(): a target in llama.cpp, which is there in a third of the time that transformers takes to import;
LIGHT = {"backend": "llama_cpp", "target": "same.gguf"}
ROOMY = LIGHT | {"context": "8192"}  # an answer of 8000 tokens takes seconds
# and one in transformers, whose answers are the same to the last bit however they were drafted.
EXACT = {"backend": "transformers", "target": "target"}


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """target/ (fp32), draft.gguf that often agrees with it, same.gguf with its very weights, other.gguf."""
    return write_models(tmp_path_factory.mktemp("tiny"))


def write_models(root: Path) -> Path:
    write_tiny(root / "target", context=8192)  # room for answers of seconds
    write_gguf(root / "target", root / "same.gguf")
    write_gguf(write_tiny(root / "noisy", noise=0.15, context=8192), root / "draft.gguf")
    return root


@pytest.fixture(scope="session")
def tool_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a template that takes tools; target.gguf; plain/ has a template that takes none."""
    root = tmp_path_factory.mktemp("tools")
    write_tiny(root / "target", tools=True)
    write_gguf(root / "target", root / "target.gguf")
    write_gguf(write_tiny(root / "noisy", noise=0.15, tools=True), root / "draft.gguf")
    write_tiny(root / "plain")
    return root


@dataclass
class Daemon:
    """One `draftd serve` child and how to reach it."""

    process: subprocess.Popen[str]
    endpoint: str
    lines: Path
    launch: Callable[[], subprocess.Popen[str]]
    clients: list[Client] = field(default_factory=list)

    def start_again(self) -> None:
        """Another front at the same endpoint, as systemd starts one after a crash."""
        self.process = self.launch()

    def client(self) -> Client:
        self.clients.append(Client(self.endpoint))
        return self.clients[-1]

    def status(self) -> Status:
        with Client(self.endpoint) as client:
            return client.status()

    def wait_for(self, condition: Callable[[Status], bool]) -> Status:
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            assert self.process.poll() is None, self.lines.read_text()
            with contextlib.suppress(Unreachable):
                if condition(status := self.status()):
                    return status
            time.sleep(0.02)
        raise AssertionError(f"not in {WAIT} s: {self.lines.read_text()}")

    def wait_ready(self) -> Status:
        return self.wait_for(lambda status: status.state == "ready")

    def engines(self) -> list[psutil.Process]:
        """The engine child that there is, if there is one."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it has just ended
                if "draftd.daemon.worker" in child.cmdline():
                    found.append(child)
        return found

    def engine(self) -> psutil.Process:
        """The engine child, as soon as there is one."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if found := self.engines():
                return found[0]
            time.sleep(0.01)
        raise AssertionError("no engine process")

    def halt(self, engine: psutil.Process) -> None:
        """Stop the engine in the midst of a request, which must not be over."""
        engine.suspend()
        assert self.status().requests["running"], "too late: the answer is over"


Serve = Callable[..., Daemon]


@pytest.fixture
def serve(tmp_path: Path, tiny_files: Path) -> Iterator[Serve]:
    """Start a daemon: serve("--slots", "2", target="target", draft="draft.gguf", dtype="float32")."""
    with serving(tmp_path, tiny_files) as start:
        yield start


@pytest.fixture(scope="module")
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_files: Path
) -> Iterator[Daemon]:
    """One daemon for the tests of a file that leave it as they found it; the file's `DAEMON` says which."""
    with serving(tmp_path_factory.mktemp("shared"), tiny_files) as start:
        yield start("--slots", "2", **getattr(request.module, "DAEMON", ROOMY))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    """One that says what a test wrote for it; files that want a real one have their own by this name."""
    with ScriptedDaemon(tmp_path / "d.sock") as running:
        yield running


@pytest.fixture(scope="module")
def tiny_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of `tiny`: what a file has measured of the machine is kept for its other tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def tiny(
    tmp_path: Path, tiny_files: Path, tiny_state: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Pair, Settings]:
    """A pair in llama.cpp: an fp32 draft of the target's own weights, so every recipe agrees less."""
    for name in [name for name in os.environ if name.startswith("DRAFTD_")]:
        monkeypatch.delenv(name)
    shutil.copy(tiny_files / "same.gguf", tmp_path / "draft.gguf")
    (tmp_path / "catalog.toml").write_text(
        f'[models.big]\npath = "{tiny_files / "same.gguf"}"\n[models.small]\npath = "{tmp_path}/draft.gguf"\n'
        '[pairs.tiny]\ntarget = "big"\ndraft = "small"\nbackend = "llama_cpp"\n'
        '[pairs.alone]\ntarget = "big"\nbackend = "llama_cpp"\n'
    )
    given = {"catalog": "catalog.toml", "config": os.devnull, "cache_dir": "cache"}
    for name, value in given.items():
        monkeypatch.setenv(f"DRAFTD_{name.upper()}", str(tmp_path / value))
    monkeypatch.setenv("DRAFTD_STATE_DIR", str(tiny_state))
    monkeypatch.setenv("DRAFTD_THREADS", "1")
    monkeypatch.setenv("DRAFTD_PAIR", "tiny")
    monkeypatch.setenv("COLUMNS", "200")
    return load_catalog().pair("tiny"), configuration.load()


@pytest.fixture(scope="module")
def base(shared: Daemon) -> Iterator[str]:
    """The address of a gateway to the daemon of a file."""
    shared.wait_ready()
    with gateway(shared.endpoint) as address:
        yield address


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Desk]:
    """A front without an engine, of two slots and one place to wait."""
    with desk(tmp_path, slots=2, queue=1, credit_wait=60.0) as made:
        yield made


@contextlib.contextmanager
def cancelling(daemon: Daemon) -> Iterator[None]:
    """What happens here ends a request before its time."""

    def count() -> int:
        with Client(daemon.endpoint) as client:
            outcomes = client.status(full=True).counters["outcomes"]
        # An app that ends at once may be gone before its cancel is read.
        return int(outcomes.get("cancelled", 0) + outcomes.get("client_gone", 0))

    before = count()
    yield
    daemon.wait_for(lambda _: count() > before)


@contextlib.contextmanager
def serving(tmp_path: Path, tiny_files: Path) -> Iterator[Serve]:
    daemons: list[Daemon] = []

    def start(
        *options: str,
        target: Path | str = "target",
        draft: Path | str | None = "draft.gguf",
        backend: str = "transformers",
        wait: bool = True,
        program: Sequence[str] = (sys.executable, "-m", "draftd.daemon.cli"),
        **settings: str,
    ) -> Daemon:
        number = len(daemons)
        catalog = tmp_path / f"catalog{number}.toml"
        entries = [f'[models.target]\npath = "{tiny_files / target}"']
        if draft is not None:
            entries.append(f'[models.draft]\npath = "{tiny_files / draft}"')
        entries.append('[pairs.tiny]\ntarget = "target"' + ('\ndraft = "draft"' if draft is not None else ""))
        entries.append(f'backend = "{backend}"')
        catalog.write_text("\n".join(entries))
        directory = tmp_path / f"run{number}"
        directory.mkdir(mode=0o700)
        endpoint = f"ipc://{directory}/d.sock"
        given = {"dtype": "float32", "context": "512", "threads": "1", **settings}
        environment = {
            **os.environ,
            **{f"DRAFTD_{key.upper()}": value for key, value in given.items()},
            "DRAFTD_CATALOG": str(catalog),
            "DRAFTD_CONFIG": str(tmp_path / "none.toml"),
            "DRAFTD_STATE_DIR": str(tmp_path / "state"),
            "DRAFTD_CACHE_DIR": str(tmp_path / "cache"),
        }
        command = [
            *program,
            "serve",
            "--pair",
            "tiny",
            "--endpoint",
            endpoint,
        ]
        lines = tmp_path / f"log{number}"
        lines.touch()
        (tmp_path / "none.toml").touch()

        def launch() -> subprocess.Popen[str]:
            with lines.open("a") as out:
                return subprocess.Popen(
                    [*command, *options],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    text=True,
                )

        daemon = Daemon(launch(), endpoint, lines, launch)
        daemons.append(daemon)
        if wait:
            daemon.wait_ready()
        return daemon

    try:
        yield start
    finally:
        for daemon in daemons:
            for client in daemon.clients:
                client.close()
            daemon.process.terminate()
        for daemon in daemons:
            try:
                daemon.process.wait(20)
            finally:
                daemon.process.kill()
                daemon.process.wait()
