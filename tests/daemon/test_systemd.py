"""The units: as systemd judges them here, and (marked `systemd`) in a real systemd with a real daemon."""

from __future__ import annotations

import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftd.daemon import service
from draftd.ipc.errors import DraftdError, InvalidConfig
from tests.systemd_box import Box, Unavailable
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

UNITS = ["draftd.service", "draftd-metrics.service", "draftd-gateway.service"]
DRAFTD = "/opt/draftd/bin/draftd"
CONFIG = 'pair = "tiny"\ndtype = "float32"\ncontext = 512\nthreads = 1\n'
STREAM = """
import os, signal, sys
from draftd.ipc import Client, Tokens

ASK = {"prompt": "def add(a, b):", "max_tokens": 400, "ignore_eos": True, "temperature": 1.0, "seed": 9}
with Client(patience=60.0) as client:
    undisturbed = client.complete(**ASK, cache_prompt=False).tokens
    tokens, front = [], int(sys.argv[1])
    for event in client.generate(**ASK, cache_prompt=False):
        tokens += event.tokens if isinstance(event, Tokens) else []
        if front and len(tokens) >= 20:
            os.kill(front, signal.SIGKILL)
            front = 0
    print(tokens == undisturbed, client.status().requests["finished"])
"""
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here: apt-get install systemd"
)


def render(directory: Path, system: bool, version: int) -> list[Path]:
    """The service units as `service install` writes them, for a command that exists."""
    found = []
    for path, text in service.rendered(system, service.BESIDE, "/bin/true", version).items():
        if path.suffix == ".service":
            found.append(directory / path.name)
            found[-1].write_text(text)
    return found


@needs_systemd
@pytest.mark.parametrize("system", [True, False], ids=["system", "user"])
def test_systemd_has_nothing_to_say_about_the_units(
    system: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    units = [str(path) for path in render(tmp_path, system, service.systemd_version())]
    assert [Path(unit).name for unit in units] == UNITS
    command = ["systemd-analyze", "verify", "--man=no", *(() if system else ("--user",)), *units]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_the_system_units_are_hardened(name: str, tmp_path: Path) -> None:
    unit = next(path for path in render(tmp_path, True, 0) if path.name == name)
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= 2.0


def test_gpus_stay_in_reach_and_each_exception_has_its_reason() -> None:
    text = service.shipped("draftd.service")
    lines = text.splitlines()
    for device in ("char-drm", "char-kfd", "char-nvidia-uvm"):
        assert f"DeviceAllow={device} rw" in lines
    assert "SupplementaryGroups=video render" in lines
    for left_out in ("PrivateDevices", "ProcSubset=pid", "MemoryDenyWriteExecute", "PrivateUsers"):
        (reason,) = [line for line in lines if line.startswith(f"# Not set: {left_out}.")]
        assert len(reason) > len(left_out) + 30
        assert not any(line.startswith(left_out.split("=")[0] + "=") for line in lines)


def test_a_newer_systemd_is_told_to_reload_by_itself() -> None:
    text = service.shipped("draftd.service")
    assert service.unit(text, "/opt/draftd", 252).count("Type=notify\n") == 1
    newer = service.unit(text, "/opt/draftd", 253)
    assert "Type=notify-reload\n" in newer
    assert "ExecReload" not in newer
    assert service.unit(service.shipped("draftd-metrics.service"), "x", 253).count("Type=notify\n") == 1


def test_the_command_is_this_draftd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/my tools/50%/draftd"])
    monkeypatch.setattr(sys, "prefix", "/opt/x")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert service.executable(system=True) == "'/opt/my tools/50%%/draftd'"
    monkeypatch.setattr(sys, "argv", ["/home/ada/bin/draftd"])
    assert service.executable(system=False) == "/home/ada/bin/draftd"
    with pytest.raises(InvalidConfig, match="/home/ada/bin/draftd"):
        service.executable(system=True)
    monkeypatch.setattr(sys, "argv", ["/opt/x/bin/draftd"])
    for hidden in service.HIDDEN:
        monkeypatch.setattr(sys, "base_prefix", f"{hidden}/ada/python")
        with pytest.raises(InvalidConfig, match=f"{hidden}/ada/python"):
            service.executable(system=True)


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemctl here")
def test_a_dry_run_names_each_step_and_takes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    command = [sys.executable, "-m", "draftd.daemon.cli", "service", "install", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"write {tmp_path}/systemd/user/draftd.service\n" in done.stdout
    assert "run   systemctl --user daemon-reload\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_upgrade_takes_the_units_that_are_there_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    metrics = tmp_path / "systemd" / "user" / "draftd-metrics.service"
    metrics.parent.mkdir(parents=True)
    metrics.touch()
    service.install(dry_run=True)
    said = capsys.readouterr().out
    assert f"write {metrics}\n" in said
    assert "run   systemctl --user enable draftd.service\n" in said, "one that was disabled stays so"
    assert "run   systemctl --user restart draftd.service\n" in said
    assert "run   systemctl --user try-restart draftd-metrics.service\n" in said
    assert "gateway" not in said
    service.install(dry_run=True, metrics=True)
    said = capsys.readouterr().out
    assert "run   systemctl --user enable draftd.service draftd-metrics.service\n" in said
    assert "try-restart" not in said


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="no systemd-tmpfiles here")
def test_a_settings_file_is_made_once_and_then_the_operators(tmp_path: Path) -> None:
    lines = service.shipped("tmpfiles.conf").splitlines()
    rules, file = tmp_path / "draftd.conf", tmp_path / "etc" / "draftd" / "config.toml"
    rules.write_text("".join(f"{line}\n" for line in lines if line.startswith("f")))
    file.parent.mkdir(parents=True)
    create = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(rules)]
    subprocess.run(create, check=True)
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("", 0o644)
    file.write_text(CONFIG)
    file.chmod(0o640)
    subprocess.run(create, check=True)
    assert (file.read_text(), file.stat().st_mode & 0o777) == (CONFIG, 0o640)
    file.rename(tmp_path / "kept.toml")
    file.symlink_to("../../kept.toml")
    subprocess.run(create, check=True)
    assert file.read_text() == CONFIG


def test_where_systemd_is_missing_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidConfig, match="there is no systemctl here"):
        service.status()
    with pytest.raises(DraftdError, match="cannot run `systemd-sysusers x`: No such file"):
        service._run(["systemd-sysusers", "x"], dry_run=False)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A real systemd with draftd and a tiny pair in it."""
    try:
        made = Box(tmp_path_factory.mktemp("systemd"))
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        made.install_draftd()
        tiny = tmp_path_factory.mktemp("tiny")
        write_tiny(tiny / "target")
        write_gguf(tiny / "target", tiny / "draft.gguf")
        for file in [*(tiny / "target").iterdir(), tiny / "draft.gguf"]:
            inside = made.inside("/srv/tiny") / file.relative_to(tiny)
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.write_bytes(file.read_bytes())
        made.write("/etc/draftd/config.toml", CONFIG)
        models = "".join(
            f'[models.{name}]\npath = "/srv/tiny/{file}"\n'
            for name, file in (("target", "target"), ("draft", "draft.gguf"))
        )
        pair = '[pairs.tiny]\ntarget = "target"\ndraft = "draft"\nbackend = "transformers"\n'
        made.write("/etc/draftd/catalog.toml", models + pair)
        yield made
    finally:
        made.close()


@pytest.mark.systemd
@pytest.mark.timeout(300)
def test_the_system_service_for_real(box: Box) -> None:
    said = box.run(DRAFTD, "service", "install", "--system", "--metrics", "--gateway")
    assert "run   systemctl restart draftd.service draftd-metrics.service draftd-gateway.service" in said

    def show(name: str, unit: str = "draftd") -> str:
        return box.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def ask(*command: str, user: str = "draftd") -> str:
        return box.run("env", "DRAFTD_ENDPOINT=ipc:///run/draftd/draftd.sock", DRAFTD, *command, user=user)

    assert show("ActiveState") == "active"  # Type=notify: READY came
    assert ask("run", "--max-tokens", "4", "def add(a, b):")  # waits until the models are there
    assert show("StatusText") == "ready: tiny"
    front = show("MainPID")
    assert 'draftd_state{state="ready"} 1.0' in box.run(
        "curl", "-sf", "--unix-socket", "/run/draftd-metrics/metrics.sock", "http://localhost/metrics"
    )
    assert "drwxr-x---" in box.run("ls", "-ld", "/run/draftd")
    assert (
        box.run("ps", "-o", "user:20=", "-p", show("MainPID", "draftd-gateway")).strip() == "draftd-gateway"
    )
    ask_http = ["curl", "-sf", "http://127.0.0.1:8765/v1/completions", "-H", "Content-Type: application/json"]
    assert '"finish_reason"' in box.run(*ask_http, "-d", '{"prompt": "def add(a, b):", "max_tokens": 4}')
    with pytest.raises(AssertionError):
        ask("status", user="nobody")

    box.write("/etc/draftd/config.toml", CONFIG + "queue = 5\n")
    box.run("systemctl", "reload", "draftd")
    box.write("/etc/draftd/config.toml", 'pair = "tiny"\nqueue = "many"\n')
    box.run("systemctl", "reload", "draftd")
    assert (show("MainPID"), show("ActiveState")) == (front, "active")
    log = box.run("journalctl", "-u", "draftd", "-o", "json", "--no-pager")
    assert re.search(r'"PRIORITY":"6"[^\n]*configuration read again changed=queue', log) or re.search(
        r'configuration read again changed=queue[^\n]*"PRIORITY":"6"', log
    )
    assert re.search(r'"PRIORITY":"3"[^\n]*reload refused', log) or re.search(
        r'reload refused[^\n]*"PRIORITY":"3"', log
    )

    box.write("/etc/draftd/config.toml", CONFIG)
    box.write("/srv/stream.py", STREAM)  # its front is killed, and systemd starts another
    environment = "DRAFTD_ENDPOINT=ipc:///run/draftd/draftd.sock"
    said = box.run("env", environment, "/opt/draftd/bin/python", "/srv/stream.py", front, user="draftd")
    assert said == "True 1\n"  # equal tokens; answers of the front that came
    assert show("MainPID") != front
    box.run("systemctl", "stop", "draftd")
    assert show("Result") == "success"
    assert "nothing" not in box.run(DRAFTD, "service", "uninstall", "--system")
    assert not box.inside("/etc/systemd/system/draftd.service").exists()


@pytest.mark.systemd
@pytest.mark.timeout(300)
def test_the_user_service_for_real(box: Box) -> None:
    box.run("systemctl", "start", "user@0.service")
    home = pwd.getpwuid(0).pw_dir
    box.run("mkdir", "-p", f"{home}/.config")
    box.run("rm", "-rf", f"{home}/.config/draftd")
    box.run("cp", "-r", "/etc/draftd", f"{home}/.config/draftd")
    box.write(f"{home}/.config/draftd/config.toml", CONFIG)

    def user(*command: str) -> str:
        return box.run("env", f"HOME={home}", "XDG_RUNTIME_DIR=/run/user/0", *command)

    user(DRAFTD, "service", "install")
    assert user("systemctl", "--user", "is-active", "draftd").strip() == "active"
    assert user(DRAFTD, "run", "--max-tokens", "4", "def add(a, b):")
    assert "ready: tiny" in user(DRAFTD, "service", "status")
    user("systemctl", "--user", "reload", "draftd")
    user(DRAFTD, "service", "uninstall")
    assert user("systemctl", "--user", "show", "-p", "LoadState", "draftd").strip() == "LoadState=not-found"
