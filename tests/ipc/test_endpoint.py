from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from draftd.ipc import endpoint
from draftd.ipc.errors import EndpointInUse, InvalidEndpoint


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_ENDPOINT", "ipc:///run/b.sock")
    assert endpoint.resolve("ipc:///run/a.sock") == "ipc:///run/a.sock"
    assert endpoint.resolve() == "ipc:///run/b.sock"


def test_the_default_is_in_the_runtime_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DRAFTD_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert endpoint.resolve() == f"ipc://{tmp_path}/draftd/draftd.sock"


def test_without_a_runtime_directory_it_is_in_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DRAFTD_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert endpoint.resolve() == f"ipc://{tmp_path}/draftd/run/draftd.sock"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("/run/draftd.sock", "has no scheme: write ipc:///run/draftd.sock"),
        ("draftd", "has no scheme: write ipc:///path/to/draftd.sock"),
        ("ipc://draftd.sock", "give the socket file's absolute path"),
        ("ipc://", "give the socket file's absolute path"),
        ("ipc://@draftd", "give the socket file's absolute path"),
        ("ipc:///run/", "give the socket file's absolute path"),
        ("ipc:///run/a\0b", "give the socket file's absolute path"),
        ("http://localhost", "http:// is not supported: use ipc://"),
        ("tcp://127.0.0.1", "give a port from 1 to 65535"),
        ("tcp://127.0.0.1:0", "give a port from 1 to 65535"),
        ("tcp://127.0.0.1:65536", "give a port from 1 to 65535"),
        ("tcp://127.0.0.1:x", "give a port from 1 to 65535"),
        ("ipc:///" + "x" * 107, "the path is 108 bytes, a socket's may have 107: choose a shorter one"),
        ("ipc:///" + "ö" * 54, "the path is 109 bytes"),
    ],
)
def test_a_wrong_endpoint_says_what_to_write(wrong: str, sentence: str) -> None:
    with pytest.raises(InvalidEndpoint) as caught:
        endpoint.resolve(wrong)
    assert sentence in str(caught.value)


def test_the_longest_path_can_be_bound(tmp_path: Path) -> None:
    room = endpoint.MAX_PATH - len(os.fsencode(tmp_path)) - 1
    path = tmp_path / ("x" * room)
    assert endpoint.socket_path(f"ipc://{path}") == path
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def test_makes_a_private_directory(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with endpoint.prepare(f"ipc://{tmp_path}/a/b/d.sock"):
            for part in (tmp_path / "a", tmp_path / "a" / "b"):
                assert stat.S_IMODE(part.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o701, 0o755, 0o777, 0o704])
def test_refuses_a_directory_that_others_can_enter(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(InvalidEndpoint, match=f"run `chmod o= {directory}`"):
        endpoint.prepare(f"ipc://{directory}/d.sock")
    assert list(directory.iterdir()) == []


def test_does_not_tell_to_close_a_shared_directory(tmp_path: Path) -> None:
    directory = tmp_path / "tmp"
    directory.mkdir()
    directory.chmod(0o1777)
    with pytest.raises(InvalidEndpoint, match=f"use a directory of its own, as in ipc://{directory}/draftd/"):
        endpoint.prepare(f"ipc://{directory}/d.sock")


def test_a_group_may_enter(tmp_path: Path) -> None:
    directory = tmp_path / "group"
    directory.mkdir()
    directory.chmod(0o750)
    endpoint.prepare(f"ipc://{directory}/d.sock").release()


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidEndpoint, match="is not a directory"):
        endpoint.prepare(f"ipc://{tmp_path}/file/d.sock")


def test_never_removes_what_is_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "d.sock").write_text("precious")
    with pytest.raises(InvalidEndpoint, match="is not a socket"):
        endpoint.prepare(f"ipc://{tmp_path}/d.sock")
    assert (tmp_path / "d.sock").read_text() == "precious"
    assert not (tmp_path / "d.sock.lock").exists()


def test_removes_a_stale_socket_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "d.sock"))
    with endpoint.prepare(f"ipc://{tmp_path}/d.sock"):
        assert not (tmp_path / "d.sock").exists()
        with socket.socket(socket.AF_UNIX) as live:
            live.bind(str(tmp_path / "d.sock"))
    assert list(tmp_path.iterdir()) == []


def test_a_second_daemon_hears_who_is_first(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    program = (
        "import sys; from draftd.ipc import endpoint\n"
        "hold = endpoint.prepare(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    with pytest.raises(EndpointInUse) as caught:
        endpoint.prepare(address)
    assert f"(pid {first.pid})" in str(caught.value)
    assert address in str(caught.value)
    first.kill()  # without a release: the lock goes with the process
    first.communicate()
    endpoint.prepare(address).release()


def test_a_refused_daemon_leaves_the_first_ones_socket(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    with endpoint.prepare(address), socket.socket(socket.AF_UNIX) as live:
        live.bind(str(tmp_path / "d.sock"))
        with pytest.raises(EndpointInUse):
            endpoint.prepare(address)
        assert (tmp_path / "d.sock").is_socket()


def test_at_the_end_what_another_daemon_made_in_its_place_is_left(tmp_path: Path) -> None:
    path, lock = tmp_path / "d.sock", tmp_path / "d.sock.lock"
    first = endpoint.prepare(f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as old, socket.socket(socket.AF_UNIX) as new:
        old.bind(str(path))
        first.bound()
        path.unlink()
        lock.unlink()
        second = endpoint.prepare(f"ipc://{path}")
        new.bind(str(path))
        second.bound()
        first.release()
        assert second.is_whole()
        assert path.is_socket()
        second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_replaced_by_a_file_is_noticed(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    hold = endpoint.prepare(f"ipc://{directory}/d.sock")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(hold.path))
        hold.bound()
        shutil.rmtree(directory)
        directory.touch()
        assert not hold.is_whole()
        with pytest.raises(InvalidEndpoint, match="is not a directory"):
            hold.renew()
    hold.release()


def test_a_lock_that_can_not_be_written_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(InvalidEndpoint, match=r"d\.sock\.lock: No space left on device"):
            endpoint.prepare(f"ipc://{tmp_path}/d.sock")
    endpoint.prepare(f"ipc://{tmp_path}/d.sock").release()  # nothing holds it


def test_an_endpoint_is_held_though_nothing_answers_there(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/d.sock"
    assert not endpoint.is_held(address)
    with endpoint.prepare(address):
        assert endpoint.is_held(address)
    assert not endpoint.is_held(address)
    (tmp_path / "d.sock.lock").touch()  # of a daemon that was killed
    assert not endpoint.is_held(address)


def test_a_port_is_held_where_something_listens() -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{port.getsockname()[1]}"
        assert not endpoint.is_held(address)
        port.listen()
        assert endpoint.is_held(address)
