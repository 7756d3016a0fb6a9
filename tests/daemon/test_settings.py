"""What the settings make of what is written in the file and the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftd.daemon import settings
from draftd.ipc.errors import InvalidConfig


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_CONFIG", os.devnull)


@pytest.mark.parametrize(
    ("given", "users"),
    [
        ("alice", ["alice"]),
        ("alice, 1000,bob", ["alice", "1000", "bob"]),
        ('["alice", "bob"]', ["alice", "bob"]),
        ("", []),
    ],
)
def test_a_variable_names_users_with_commas_or_as_json(
    monkeypatch: pytest.MonkeyPatch, given: str, users: list[str]
) -> None:
    monkeypatch.setenv("DRAFTD_ALLOW_USERS", given)
    assert settings.load().allow_users == users


def test_a_wrong_list_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_ALLOW_USERS", '["alice"')
    with pytest.raises(InvalidConfig, match="allow_users"):
        settings.load()


def test_the_file_has_a_list(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('allow_users = ["alice", "bob"]\n')
    assert settings.load(file).allow_users == ["alice", "bob"]


def test_a_file_that_is_named_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", str(tmp_path / "none.toml")):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))  # where no file is
        monkeypatch.setenv("DRAFTD_CONFIG", name)
        if not name:
            assert settings.load().queue == 64, "an empty variable names none"
            continue
        with pytest.raises(InvalidConfig, match=r"cannot read .*/none.toml: No such file"):
            settings.load()


def test_a_directory_that_cannot_be_looked_into_is_an_error_of_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DRAFTD_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", f"/{'a' * 300}")  # as one that is closed to us, but for root too
    with pytest.raises(InvalidConfig, match=r"cannot read .*/config.toml: File name too long"):
        settings.load()


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DRAFTD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DRAFTD_STATE_DIR", "~/state")
    file = tmp_path / "config.toml"
    file.write_text('cache_dir = "~/cache"\ncurve_key = "~/key"\ncurve_clients = "/keys/~"\n')
    found = settings.load(file)
    assert (found.cache_dir, found.state_dir) == (tmp_path / "cache", tmp_path / "state")
    assert (found.curve_key, found.curve_clients) == (tmp_path / "key", Path("/keys/~"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_low", "61"),  # its clearing mark would be out of reach
        ("governor_dwell", "0.001"),
        *((name, "nan") for name in ("memory_low", "memory_stall", "heat", "battery_low", "governor_dwell")),
        ("hang_seconds", "nan"),
        ("credit_wait", "nan"),
        ("keep_alive", "nan"),
    ],
)
def test_numbers_that_no_governor_can_work_by_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"DRAFTD_{name.upper()}", value)
    with pytest.raises(InvalidConfig, match=name):
        settings.load()
