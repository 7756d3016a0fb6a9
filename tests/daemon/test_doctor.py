from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Literal

import pytest
import typer
from typer.testing import CliRunner

from draftd.daemon import budget, checks, doctor, machine, plan_cli
from draftd.daemon.model_files import read_shape
from draftd.daemon.settings import Settings, load
from draftd.ipc import endpoint
from draftd.ipc.client import Client
from draftd.ipc.errors import CorruptModel, DraftdError, NotPermitted, UnsupportedVersion
from draftd.models import probe
from draftd.models.catalog import Model, Pair
from tests.daemon.conftest import Daemon
from tests.gguf_header import SHAPE, write_header
from tests.tiny import retokenize, write_tiny
from tests.tiny_gguf import write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, a private endpoint and no configuration but the defaults."""
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("DRAFTD_CONFIG", "DRAFTD_CATALOG", "DRAFTD_PAIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DRAFTD_ENDPOINT", f"ipc://{tmp_path}/run/draftd.sock")
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def own_pair(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pair `own` of one local GGUF file, and that file."""
    file = home / "own.gguf"
    write_header(file, SHAPE)
    catalog = home / "catalog.toml"
    catalog.write_text(
        f'[models.m]\npath = "{file}"\n[pairs.own]\ntarget = "m"\ndraft = "m"\nbackend = "transformers"\n'
    )
    monkeypatch.setenv("DRAFTD_CATALOG", str(catalog))
    monkeypatch.setenv("DRAFTD_PAIR", "own")
    return file


def run(*options: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(doctor.doctor)
    result = CliRunner().invoke(app, list(options), env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_a_line_each_and_a_failure_makes_the_status_1(own_pair: Path) -> None:
    status, output = run()
    assert status == 0, output
    names = [line.split(maxsplit=1)[1].split(":")[0] for line in output.splitlines()]
    assert names[:3] == ["Python", "configuration", "socket"]
    assert {"compiler", "CPU", "AMX probe", "GPU", "model m", "memory", "disk"} <= set(names)
    own_pair.unlink()
    status, output = run()
    assert status == 1
    assert f"FAIL  model m: there is no {own_pair}; put it there\n" in output


def test_json_holds_the_same(own_pair: Path) -> None:
    status, output = run("--json", "--pair", "nothing")
    found = json.loads(output)
    assert status == 1
    assert set(found[0]) == {"name", "state", "found", "mend"}
    assert found[-1]["name"] == "pair"
    assert found[-1]["state"] == "FAIL"
    assert "nothing" in found[-1]["found"]


def test_a_client_only_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: None)
    status, output = run()
    assert status == 0
    assert len(output.splitlines()) == 4
    assert output.splitlines()[-1].startswith("warn  engine: not installed")
    assert "pip install 'draftd[engine]'" in output


def test_half_an_engine_fails(monkeypatch: pytest.MonkeyPatch, own_pair: Path) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: None if name == "torch" else "1")
    status, output = run()
    assert status == 1
    assert "FAIL  torch: not installed; run `pip install 'draftd[engine]'`\n" in output


def test_a_wrong_configuration_is_named_and_the_rest_goes_on(home: Path) -> None:
    file = home / "config.toml"
    file.write_text("slot = 3\n")
    status, output = run("--config", str(file))
    assert status == 1
    assert f"FAIL  configuration: {file}: unknown key slot" in output
    assert "socket" in output


def test_an_open_socket_directory_fails(home: Path) -> None:
    (home / "run").mkdir()
    (home / "run").chmod(0o755)
    check = checks.socket(load())
    assert check.state == "FAIL"
    assert check.mend == f"run `chmod o= {home}/run`"
    (home / "run").chmod(0o700)
    assert checks.socket(load()).state == "ok"


def test_a_socket_directory_that_many_share_is_not_closed_to_them(home: Path) -> None:
    (home / "run").mkdir()
    (home / "run").chmod(0o1777)
    check = checks.socket(load())
    assert check.state == "FAIL"
    assert check.mend == f"use a directory of its own, as in ipc://{home}/run/draftd/draftd.sock"


def test_an_endpoint_on_tcp_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_ENDPOINT", "tcp://127.0.0.1:5555")
    for name in ("DRAFTD_SERVER_KEY", "DRAFTD_CLIENT_KEY"):
        monkeypatch.delenv(name, raising=False)
    check = checks.socket(load())
    assert check.state == "warn"
    assert "tcp needs keys" in check.found


def test_a_daemon_that_does_not_answer_is_not_said_to_be_gone(home: Path) -> None:
    (home / "run").mkdir(mode=0o700)
    path = home / "run" / "draftd.sock"
    with endpoint.prepare(f"ipc://{path}"), socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(path))
        stopped.listen()
        check = checks.socket(load())
    assert (check.state, check.mend) == ("warn", "see its log, and restart it")
    assert check.found == f"ipc://{path}, a daemon holds it and does not answer"


@pytest.mark.parametrize(
    ("error", "mend"), [(UnsupportedVersion("old"), "restart the daemon"), (NotPermitted("no"), "")]
)
def test_who_may_not_use_a_daemon_is_not_told_to_restart_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: DraftdError, mend: str
) -> None:
    def refuse(client: Client) -> None:
        raise error

    (home / "run").mkdir(mode=0o700)
    (home / "run" / "draftd.sock").touch()
    monkeypatch.setattr(Client, "status", refuse)
    check = checks.socket(load())
    assert (check.state, check.mend) == ("warn", mend)
    assert check.found.endswith(f": {error.message}")


def test_a_member_of_the_group_need_not_write_beside_a_daemon_that_answers(
    shared: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = checks.socket(load(endpoint=shared.endpoint))
    assert check.state == "ok"
    assert "a daemon serves tiny" in check.found


def test_a_directory_that_is_closed_to_us_is_said_to_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's is, below which pathlib raises; root would see through real permissions."""
    closed, stat = home / "c", Path.stat

    def refusing(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if closed in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    closed.mkdir()
    monkeypatch.setattr(Path, "stat", refusing)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    settings = load(endpoint=f"ipc://{closed}/run/d.sock", cache_dir=closed / "cache")
    assert checks.socket(settings).found == f"{closed}/run can't be made"
    assert checks.directories(settings).found == f"no permission to write to {closed}"
    assert "FAIL" in {check.state for check in checks.pair(settings)}, "and it goes on to the end"


def test_a_socket_path_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_ENDPOINT", f"ipc:///{'x' * 120}")
    check = checks.socket(load())
    assert check.state == "FAIL"
    assert "107" in check.found


@pytest.mark.parametrize(
    ("installed", "features", "state", "said"),
    [
        ({}, "avx2", "warn", "no C++ compiler"),
        ({"g++": "12.2.0"}, "avx2 amx_tile", "warn", "compiles AMX wrongly"),
        ({"g++": "12.2.0"}, "avx2", "ok", "g++ 12.2.0"),
        ({"g++": "13.2.0"}, "avx2 amx_tile", "ok", "g++ 13.2.0"),
        ({"g++": "12.2.0", "clang++-16": "16.0.6"}, "avx2 amx_tile", "ok", "clang++-16 16.0.6"),
    ],
)
def test_compilers(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: dict[str, str],
    features: str,
    state: str,
    said: str,
) -> None:
    (home / "bin").mkdir()
    for name, version in installed.items():
        path = home / "bin" / name
        path.write_text(f"#!/bin/sh\necho '{name} (Debian) {version}'\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(home / "bin"))
    monkeypatch.setattr(machine, "CPUINFO", home / "cpuinfo")
    (home / "cpuinfo").write_text(f"model name\t: A CPU\nflags\t\t: {features}\n\nmodel name\t: second\n")
    check = checks.compiler()
    assert check.state == state
    assert said in check.found


def test_the_cpu_is_named_with_what_it_can_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", home / "cpuinfo")
    (home / "cpuinfo").write_text("model name\t: A CPU\nflags\t\t: sse2 avx2 avx512f amx_tile\n\n")
    assert checks.cpu().found == f"A CPU, {machine.cores()} cores, AVX2, AVX-512, AMX"
    (home / "cpuinfo").write_text("model name\t: Old\nflags\t\t: sse2\n\n")
    assert checks.cpu().state == "warn"


@pytest.mark.parametrize(
    ("outcome", "state", "said"),
    [
        ("ok", "ok", "with AMX"),
        ("sigill", "warn", "illegal instruction"),
        ("failed", "FAIL", "no such thing"),
    ],
)
def test_the_amx_probe(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Literal["ok", "sigill", "failed"],
    state: str,
    said: str,
) -> None:
    monkeypatch.setattr(machine, "CPUINFO", home / "cpuinfo")
    (home / "cpuinfo").write_text("flags\t\t: amx_tile\n")
    monkeypatch.setattr(probe, "run_probe", lambda: probe.Probe(outcome, "no such thing"))
    check = checks.amx()
    assert check.state == state
    assert said in check.found
    assert (state == "ok") == (check.mend == "")


def test_too_little_memory_warns(own_pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "measure_room", lambda _: budget.Room(10**9, 0))
    found = {check.name: check for check in checks.pair(load(backend="llama_cpp", context=65536))}["memory"]
    assert found.state == "warn"
    assert "serve with --context" in found.mend
    monkeypatch.setattr(plan_cli, "held", lambda settings: 10**12)
    found = {check.name: check for check in checks.pair(load(backend="llama_cpp", context=65536))}["memory"]
    assert (found.state, found.mend) == ("ok", "")
    assert found.found.endswith("; the daemon that runs here holds 1000.0 GB")
    monkeypatch.setattr(budget, "measure_room", lambda _: budget.Room(10**12, 0))
    assert {check.name: check.state for check in checks.pair(load())}["memory"] == "ok"


def test_a_file_that_is_no_gguf(own_pair: Path) -> None:
    own_pair.write_bytes(b"not a model" * 10)
    with pytest.raises(CorruptModel, match="not a readable model"):
        read_shape(own_pair)
    found = {check.name: check for check in checks.pair(load())}
    assert found["memory"].state == "FAIL"


def test_missing_and_wrong_catalog_files_say_pull(home: Path) -> None:
    settings: Settings = load()
    missing = next(checks.pair(settings))
    assert missing.state == "FAIL"
    assert missing.mend == "run `draftd models pull smollm2`"
    path = settings.cache_dir / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a model")
    wrong = next(checks.pair(settings))
    assert wrong.state == "FAIL"
    assert "is not the catalog's file" in wrong.found


def test_a_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 50_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    disk = next(check for check in checks.pair(load()) if check.name == "disk")
    assert disk.state == "FAIL"
    assert "50 MB free" in disk.found


def test_how_the_drafts_tokens_reach_the_target(home: Path) -> None:
    plain = write_tiny(home / "plain")
    same = write_gguf(plain, home / "same.gguf")
    other = write_gguf(retokenize(plain, home / "other"), home / "other.gguf")
    for draft, target, words in (
        (other, same, "different tokenizers: drafting by shared tokens (100 %"),
        (other, plain, "different tokenizers: drafting by shared tokens (100 %"),
        (same, plain, "the same tokenizer"),
    ):
        pair = Pair("p", Model(name="d", path=draft), Model(name="t", path=target), "auto", "")
        found = checks.tokenizers(pair, load())
        assert found.state == "ok"
        assert found.found.startswith(words)
    broken = Pair("p", Model(name="d", path=home / "none.gguf"), Model(name="t", path=same), "auto", "")
    found = checks.tokenizers(broken, load())
    assert found.state == "warn"
    assert "none.gguf" in found.found
