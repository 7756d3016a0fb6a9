"""Conversations on disk: what is believed, what is refused, what makes room."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import struct
import tracemalloc
from array import array
from pathlib import Path

import pytest

from draftd.daemon import conversations
from draftd.daemon.conversations import OWN, Conversation, Conversations

STATE = bytes(range(256)) * 4


@pytest.fixture
def store(tmp_path: Path) -> Conversations:
    return Conversations(tmp_path, 10_000, lambda: "a model")


def which(name: str, app: str = "app", user: str = OWN) -> Conversation:
    return Conversation(user, app, name)


def save(store: Conversations, name: str, tokens: list[int], state: bytes = STATE, user: str = OWN) -> Path:
    store.save(which(name, user=user), tokens, state)
    store.settle()
    return store.path(which(name, user=user))


def test_what_is_saved_comes_back(store: Conversations) -> None:
    path = save(store, "chat", [1, 2, 300_000])
    assert store.tokens(which("chat")) == [1, 2, 300_000]
    assert store.load(which("chat")) == ([1, 2, 300_000], memoryview(STATE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    save(store, "chat", [4], STATE[:8])
    assert store.load(which("chat")) == ([4], memoryview(STATE[:8]))
    assert [entry.name for entry in conversations.kept(path.parents[1])] == ["chat"]
    assert store.load(which("other")) is None
    assert store.load(which("chat", "other app")) is None


def test_what_is_saved_is_read_without_a_copy(tmp_path: Path) -> None:
    store = Conversations(tmp_path, 20_000_000, lambda: "a model")
    save(store, "chat", [1], bytes(10_000_000))
    tracemalloc.start()
    try:
        found = store.load(which("chat"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found is not None
    assert len(found[1]) == 10_000_000
    assert peak < 11_000_000


@pytest.mark.parametrize("place", [0, 8, 12, 16, 48, 60, 150, 400, -1])
def test_a_changed_byte_is_refused(
    store: Conversations, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(store, "chat", [1, 2, 3])
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.load(which("chat")) is None
    assert "refused and computed again" in caplog.text


@pytest.mark.parametrize("length", [0, 10, 47, 60, 150, 600])
def test_a_file_cut_short_is_refused(
    store: Conversations, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(store, "chat", [1, 2, 3])
    path.write_bytes(path.read_bytes()[:length])
    assert store.load(which("chat")) is None
    assert "refused" in caplog.text
    store.tokens(which("chat"))  # raises nothing, whatever it finds
    list(conversations.kept(path.parents[1]))


def test_a_file_of_another_model_or_conversation_is_refused(
    store: Conversations, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(store, "chat", [1, 2, 3])
    other = Conversations(path.parents[1], 10_000, lambda: "another model")
    assert other.load(which("chat")) is None, "it has a file of its own"
    path.rename(other.path(which("chat")))
    assert other.load(which("chat")) is None
    assert "of another model" in caplog.text
    os.rename(other.path(which("chat")), store.path(which("mail")))
    assert store.load(which("mail")) is None
    assert "of another conversation" in caplog.text


def test_two_users_apps_of_one_name_share_no_conversation(
    store: Conversations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    users = {OWN: [1, 2], "12345": [3], "a key of forty letters": [4]}
    paths = {user: save(store, "chat", tokens, user=user) for user, tokens in users.items()}
    assert store.load(which("chat", user="54321")) is None
    assert store.tokens(which("chat", user="54321")) == []
    for user, tokens in users.items():
        assert store.tokens(which("chat", user=user)) == tokens
        assert store.load(which("chat", user=user)) == (tokens, memoryview(STATE))
    kept = {(entry.user, entry.app, entry.name) for entry in conversations.kept(tmp_path)}
    assert kept == {(user, "app", "chat") for user in users}
    assert caplog.text == ""
    paths["12345"].rename(paths[OWN])
    assert store.load(which("chat")) is None
    assert "of another conversation" in caplog.text


def test_what_was_kept_before_users_were_told_apart_is_the_daemons_own_users(
    store: Conversations, tmp_path: Path
) -> None:
    header = json.dumps({"identity": "a model", "app": "app", "conversation": "chat", "tokens": 2}).encode()
    rest = header + array("i", [7, 8]).tobytes() + STATE
    digest = hashlib.blake2b(rest, digest_size=32).digest()
    words = json.dumps(["a model", "app", "chat"]).encode()
    old = tmp_path / "conversations" / f"{hashlib.blake2b(words, digest_size=16).hexdigest()}.kv"
    old.parent.mkdir()
    old.write_bytes(struct.pack("<8sII32s", b"draftdkv", 1, len(header), digest) + rest)
    (entry,) = conversations.kept(tmp_path)
    assert (entry.user, entry.app, entry.name, entry.tokens) == (OWN, "app", "chat", 2)
    assert store.load(which("chat", user="12345")) is None
    assert store.load(which("chat")) == ([7, 8], memoryview(STATE))
    assert save(store, "chat", [9]) == old, "it is replaced, not left beside the new one"


def test_the_ones_used_longest_ago_make_room(
    store: Conversations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for age, name in enumerate(["old", "used", "middle"]):
        path = save(store, name, [1], STATE * 2)
        os.utime(path, (1e9 + age, 1e9 + age))
    store.load(which("used"))
    for name in ("new", "newest"):
        save(store, name, [1], STATE * 2)
    assert {entry.name for entry in conversations.kept(tmp_path)} == {"used", "new", "newest", "middle"}
    save(store, "large", [1], STATE * 6)
    assert {entry.name for entry in conversations.kept(tmp_path)} == {"newest", "large"}
    save(store, "too large", [1], STATE * 10)
    assert "is not kept: the limit for all is 10000" in caplog.text
    assert {entry.name for entry in conversations.kept(tmp_path)} == {"newest", "large"}


def test_a_disk_that_cannot_take_it_costs_a_warning(
    store: Conversations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / conversations.FOLDER).write_text("in the way")
    save(store, "chat", [1])
    assert "cannot keep a conversation" in caplog.text
    assert store.load(which("chat")) is None


def test_what_a_crash_left_behind_is_removed(store: Conversations) -> None:
    path = save(store, "chat", [1])
    left = path.with_name("tmpabc.new")
    left.write_bytes(b"half")
    os.utime(left, (1e9, 1e9))
    save(store, "chat", [2])
    assert [file.name for file in path.parent.iterdir()] == [path.name]
