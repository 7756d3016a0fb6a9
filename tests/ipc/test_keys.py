"""Key files: made private, read strictly."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from zmq.auth import load_certificate

from draftd.ipc import keys
from draftd.ipc.errors import InvalidConfig
from draftd.ipc.keys import ClientKeys


def test_a_made_pair_is_private_and_readable_by_others_tools(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public, secret = keys.make(tmp_path / "keys", "server")
    finally:
        os.umask(before)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert load_certificate(secret) == keys.read_secret(secret)
    assert keys.read_public(public) == keys.read_secret(secret)[0]
    assert "secret" not in public.read_text()
    with pytest.raises(InvalidConfig, match="exists: remove it"):
        keys.make(tmp_path / "keys", "server")


def test_keys_that_cannot_be_written_are_an_error_of_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="'a/b' is no name"):
        keys.make(tmp_path, "a/b")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match=r"cannot write keys to .*/file/keys: Not a directory"):
        keys.make(tmp_path / "file" / "keys", "a")
    with pytest.raises(InvalidConfig, match=r"cannot write keys to .*: File name too long"):
        keys.make(tmp_path, "a" * 300)


def test_a_key_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    public, secret = keys.make(tmp_path, "a")
    with pytest.raises(InvalidConfig, match="holds no secret key"):
        keys.read_secret(public)
    secret.chmod(0o640)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        keys.read_secret(secret)
    (tmp_path / "b.key").write_text("hello")
    with pytest.raises(InvalidConfig, match="cannot read a key"):
        keys.read_public(tmp_path / "b.key")
    (tmp_path / "b.key").write_text('metadata\ncurve\n    public-key = "short"\n')
    with pytest.raises(InvalidConfig, match="5 characters"):
        keys.read_public(tmp_path / "b.key")


def test_an_empty_allow_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"holds no \*\.key file"):
        keys.read_allowed(tmp_path)


def test_the_secret_is_not_shown(tmp_path: Path) -> None:
    public, secret = keys.make(tmp_path, "a")
    loaded = ClientKeys.load(public, secret)
    assert loaded.secret.decode() not in repr(loaded)
