"""Who is let in: the kernel's word over the Unix socket, CURVE keys over TCP."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from draftd.daemon.peers import Peers
from draftd.daemon.settings import Settings
from draftd.ipc import Client, endpoint, keys, link
from draftd.ipc.errors import InvalidConfig, Unreachable
from draftd.ipc.keys import ClientKeys
from tests.daemon.desk import App, desk

NOBODY = 65534


def test_the_own_user_is_let_in_and_an_unlisted_one_is_not(tmp_path: Path) -> None:
    with desk(tmp_path) as front:
        assert front.ask(front.app(), "ping")["type"] == "pong"
        assert stat.S_IMODE((tmp_path / "d.sock").stat().st_mode) == 0o600
    with desk(tmp_path, allow_users=["12345"]) as front:
        error = front.ask(front.app(), "ping")
        assert error["code"] == "not_permitted"
        assert f"user {os.getuid()} may not" in error["message"]


def test_a_chosen_routing_id_is_refused(tmp_path: Path) -> None:
    with desk(tmp_path) as front:
        assert front.ask(front.app(routing_id=b"me"), "ping")["code"] == "invalid_request"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can enter."""
    with tempfile.TemporaryDirectory(prefix="draftd-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _ask_as(user: int, address: str) -> int:
    """Start a child of another user that asks once; it exits with 0 for a pong, 1 for not_permitted."""
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        app = App(address)
        app.say("ping")
        answer = app.hear()
        status = 0 if answer["type"] == "pong" else 1 if answer["code"] == "not_permitted" else 2
    finally:
        os._exit(status)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: a fork beside threads
@pytest.mark.parametrize(
    ("settings", "status"),
    [({}, 1), ({"allow_users": [str(NOBODY)]}, 0), ({"group": str(NOBODY)}, 0)],
    ids=["default", "listed", "group"],
)
def test_another_user_is_told_from_this_one(
    open_directory: Path, settings: dict[str, Any], status: int
) -> None:
    with desk(open_directory, **settings) as front:
        path = open_directory / "d.sock"
        if "group" in settings:
            found = path.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, NOBODY)
        else:
            path.chmod(0o666)  # so that only the daemon's own check stands in the way
        child = _ask_as(NOBODY, front.address)
        front.turn()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status


def test_apps_of_one_name_share_nothing_with_another_user_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk(tmp_path, share_prefixes=False) as front:

        def whose(name: str) -> tuple[str, str]:
            app = front.app()
            front.ask(app, "hello", client=name)
            front.generate(app)
            return front.told[-1]["scope"], front.told[-1]["cache_owner"]

        mine = whose("editor")
        assert mine[0] == f"{os.getuid()} editor"
        assert whose("editor") == mine
        assert whose("other")[0] != mine[0]
        monkeypatch.setattr(front.front.peers, "check", lambda client, frame: "12345")
        theirs = whose("editor")
        assert theirs[0] != mine[0]
        assert theirs[1] != mine[1]
        assert whose("")[0] == "", "an app without a name has its own text alone"
        front.front.jobs.settings = front.front.jobs.settings.model_copy(update={"share_history": True})
        assert whose("editor")[0] == "all apps"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to another group")
def test_the_directory_is_the_groups_to_enter(tmp_path: Path) -> None:
    for before in (None, 0o700):
        directory = tmp_path / f"run{before}"
        if before is not None:
            directory.mkdir(mode=before)
        with endpoint.prepare(f"ipc://{directory}/d.sock", NOBODY):
            found = directory.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o750, NOBODY)


@pytest.mark.parametrize("settings", [{"allow_users": ["no such user"]}, {"group": "no such group"}])
def test_a_name_that_nobody_has_is_said_at_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="there is no"):
        Peers(Settings(**settings), "ipc:///run/d.sock")


# ---- TCP


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A daemon with a key that lets in "laptop"; "stranger" has keys too."""
    _, secret = keys.make(tmp_path, "server")
    keys.make(tmp_path / "clients", "laptop")
    keys.make(tmp_path, "stranger")
    return {"curve_key": secret, "curve_clients": tmp_path / "clients"}


def test_a_known_key_is_let_in_over_tcp_and_others_are_not(
    tmp_path: Path, address: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = ClientKeys.load(tmp_path / "server.key", tmp_path / "clients" / "laptop.key_secret")
    stranger = ClientKeys.load(tmp_path / "server.key", tmp_path / "stranger.key_secret")
    misled = ClientKeys(stranger.public, laptop.public, laptop.secret)
    with desk(tmp_path, address, **settings) as front, front.turning():
        with Client(address, keys=laptop) as client:
            assert client.ping() > 0
            (known,) = front.front.apps._known.values()
            assert known.user == laptop.public.decode(), "over TCP an app's user is its key"
        for wrong in (stranger, misled):
            with Client(address, keys=wrong, timeout=1.0) as client, pytest.raises(Unreachable, match="key"):
                client.ping()
        bare: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        monitor = bare.get_monitor_socket(link.WATCHED)
        bare.linger = 0
        bare.connect(address)
        assert monitor.poll(10_000)
        assert link.change(monitor.recv_multipart()) is False, "a socket without keys got in"
        bare.disable_monitor()
        monitor.close(linger=0)
        bare.close()
        monkeypatch.setenv("DRAFTD_SERVER_KEY", str(tmp_path / "server.key"))
        monkeypatch.setenv("DRAFTD_CLIENT_KEY", str(tmp_path / "clients" / "laptop.key_secret"))
        done = subprocess.run(
            [sys.executable, "-m", "draftd.daemon.cli", "status", "--endpoint", address],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_key_may_be_a_systemd_credential(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = tmp_path / "credentials" / "draftd.key_secret"
    credential.parent.mkdir()
    settings.pop("curve_key").rename(credential)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credential.parent))
    credential.chmod(0o440)  # as an access list shows itself
    assert Peers(Settings(**settings), "tcp://127.0.0.1:5555").tcp


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"curve_key": None}, "tcp needs CURVE keys: make them with `draftd keys make server`"),
        ({"curve_clients": None}, "set curve_clients to a directory"),
        ({"curve_clients": Path("/nowhere")}, "there is no directory /nowhere"),
        ({"curve_key": Path("/nowhere/k")}, "cannot read a key from /nowhere/k"),
    ],
)
def test_tcp_without_keys_is_refused(
    settings: dict[str, Any], change: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(InvalidConfig) as caught:
        Peers(Settings(**{**settings, **change}), "tcp://127.0.0.1:5555")
    assert sentence in str(caught.value)
