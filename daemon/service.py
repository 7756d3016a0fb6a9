"""`draftd service`: put the units of systemd/ where systemd looks, with the path of this very draftd."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from draftd.ipc.errors import DraftdError, InvalidConfig

NOTIFY_RELOAD = 253  # the systemd that has Type=notify-reload
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # what the system unit's sandbox does not see

System = Annotated[
    bool,
    typer.Option("--system/--user", help="For everyone in the group draftd (needs root), or for you alone."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Metrics = Annotated[bool, typer.Option("--metrics", help="Also the unit that serves figures to Prometheus.")]
Gateway = Annotated[bool, typer.Option("--gateway", help="Also the unit that serves OpenAI's protocol.")]
BESIDE = ("draftd-metrics", "draftd-gateway")  # the units that need not be there

service_app = typer.Typer(no_args_is_help=True)


@service_app.command()
def install(
    system: System = False,
    metrics: Metrics = False,
    gateway: Gateway = False,
    start: Annotated[bool, typer.Option(help="Start it now and at every login or boot.")] = True,
    dry_run: DryRun = False,
) -> None:
    """Make systemd run the daemon, and say what was done."""
    _check(system, dry_run)
    wanted = [name for name, given in zip(BESIDE, (metrics, gateway), strict=True) if given]
    # an earlier install's are renewed, so that all that runs is of one version; one that is disabled stays so
    renewed = [name for name in BESIDE if name not in wanted and _unit_path(system, name).exists()]
    if "draftd-gateway" in (*wanted, *renewed) and find_spec("fastapi") is None:
        raise InvalidConfig("the gateway needs fastapi: run `pip install 'draftd[http]'`")
    units = [f"{name}.service" for name in ("draftd", *wanted)]
    for path, text in rendered(system, [*wanted, *renewed], executable(system), systemd_version()).items():
        _write(path, text, dry_run)
    if system:
        _run(["systemd-sysusers", "/etc/sysusers.d/draftd.conf"], dry_run)
        _run(["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/draftd.conf"], dry_run)
    _run([*_systemctl(system), "daemon-reload"], dry_run)
    if start:
        _run([*_systemctl(system), "enable", *units], dry_run)
        _run([*_systemctl(system), "restart", *units], dry_run)  # also one that ran with an older unit
        if renewed:
            running = [f"{name}.service" for name in renewed]
            _run([*_systemctl(system), "try-restart", *running], dry_run)
    if system:
        typer.echo("\nlet people in: gpasswd --add NAME draftd; their apps need")
        typer.echo("DRAFTD_ENDPOINT=ipc:///run/draftd/draftd.sock")
    how = " ".join([*_systemctl(system), "status draftd"])
    typer.echo(f"\nhow it is doing: {how}; its log: journalctl {'' if system else '--user '}-u draftd")


@service_app.command()
def uninstall(system: System = False, dry_run: DryRun = False) -> None:
    """Stop the daemon and take its units away; models, state and settings stay."""
    _check(system, dry_run)
    there = [path for path in rendered(system, BESIDE, "draftd", 0) if path.exists()]
    if not there:
        typer.echo("nothing is installed here")
        return
    units = [path.name for path in there if path.suffix == ".service"]
    if units:
        _run([*_systemctl(system), "disable", "--now", *units], dry_run)
    for path in there:
        typer.echo(f"remove {path}")
        if not dry_run:
            path.unlink()
    _run([*_systemctl(system), "daemon-reload"], dry_run)
    if system:
        typer.echo(
            "the user draftd, /etc/draftd, /var/lib/draftd and /var/cache/draftd stay: yours to remove"
        )


@service_app.command()
def status(system: System = False) -> None:
    """What systemd says of it."""
    _need_systemctl()
    raise typer.Exit(subprocess.run([*_systemctl(system), "status", "--no-pager", "draftd"]).returncode)


def rendered(system: bool, beside: Sequence[str], command: str, version: int) -> dict[Path, str]:
    """Every file to install, by where it goes: the units as shipped, with this draftd's path in them."""
    suffix = "" if system else "-user"
    found = {
        _unit_path(system, name): unit(shipped(f"{name}{suffix}.service"), command, version)
        for name in ("draftd", *beside)
    }
    if system:
        found[Path("/etc/sysusers.d/draftd.conf")] = shipped("sysusers.conf")
        found[Path("/etc/tmpfiles.d/draftd.conf")] = shipped("tmpfiles.conf")
    return found


def _unit_path(system: bool, name: str) -> Path:
    directory = Path("/etc/systemd/system") if system else platformdirs.user_config_path("systemd") / "user"
    return directory / f"{name}.service"


def shipped(name: str) -> str:
    return files("draftd.systemd").joinpath(name).read_text("utf-8")


def unit(text: str, command: str, version: int) -> str:
    """A unit with the command in it; newer systemd sends SIGHUP itself and waits until it took effect."""
    text = text.replace("ExecStart=draftd ", f"ExecStart={command} ")
    if version >= NOTIFY_RELOAD and "ExecReload=" in text:
        text = text.replace("Type=notify\n", "Type=notify-reload\n")
        text = re.sub(r"ExecReload=.*\n", "", text)
    return text


def executable(system: bool) -> str:
    """This draftd, as a unit may name it; InvalidConfig if the system service could not reach it."""
    script = Path(sys.argv[0]).absolute()
    if script.name != "draftd":  # python -m draftd.daemon.cli
        script = Path(sys.executable).with_name("draftd")
    if system:
        for path in (script, Path(sys.prefix), Path(sys.base_prefix)):  # the last: a Python in someone's home
            if any(path.is_relative_to(hidden) for hidden in HIDDEN):
                raise InvalidConfig(
                    f"the system service can't run {path}, which its user may not see: install it for all, "
                    "as in `python3 -m venv /opt/draftd && /opt/draftd/bin/pip install 'draftd[engine]'`, "
                    "and use that one's `draftd service install --system`"
                )
    # systemd takes % for a specifier, and quotes hold a path together
    return shlex.quote(str(script).replace("%", "%%"))


def systemd_version() -> int:
    """As `systemctl --version` says; 0 where there is none."""
    if shutil.which("systemctl") is None:
        return 0
    said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"systemd (\d+)", said)
    return int(found[1]) if found else 0


def _check(system: bool, dry_run: bool) -> None:
    if dry_run:
        return
    _need_systemctl()
    if system and os.geteuid() != 0:
        raise InvalidConfig("the system service is root's to install: run it with sudo, or without --system")


def _need_systemctl() -> None:
    if shutil.which("systemctl") is None:
        raise InvalidConfig(
            "there is no systemctl here: run `draftd serve` by whatever starts services instead"
        )


def _systemctl(system: bool) -> list[str]:
    return ["systemctl"] if system else ["systemctl", "--user"]


def _write(path: Path, text: str, dry_run: bool) -> None:
    typer.echo(f"write {path}")
    if dry_run:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise DraftdError(f"cannot write {path}: {error.strerror}") from None


def _run(command: list[str], dry_run: bool) -> None:
    typer.echo(f"run   {shlex.join(command)}")
    if dry_run:
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise DraftdError(f"cannot run `{shlex.join(command)}`: {error.strerror}") from None
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split()) or f"it ended with status {done.returncode}"
        raise DraftdError(f"`{shlex.join(command)}` failed: {words}")
