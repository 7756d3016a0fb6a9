"""Unix sockets that gateway and exporter listen at: whose the file is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from draftd.daemon.listening import bound
from draftd.ipc.errors import InvalidConfig


def test_a_socket_at_which_something_answers_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with bound(f"unix:{path}", umask=0o077) as first:
        first.listen()
        with pytest.raises(InvalidConfig, match="in use: choose another"), bound(f"unix:{path}", umask=0o077):
            pass
        with socket.socket(socket.AF_UNIX) as app:
            app.connect(str(path))
    assert not path.exists()


def test_the_socket_of_a_process_that_is_gone_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bound(f"unix:{path}", umask=0o077) as listening:
        listening.listen()
        with socket.socket(socket.AF_UNIX) as app:
            app.connect(str(path))


def test_a_socket_that_another_process_made_since_is_left_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as other:
        with bound(f"unix:{path}", umask=0o077):
            path.unlink()
            other.bind(str(path))
        assert path.is_socket()


def test_the_home_directory_may_be_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    with bound("unix:~/http.sock", umask=0o077):
        assert (home / "http.sock").is_socket()
    assert list(tmp_path.iterdir()) == [home]
