"""Conversations on disk: what is believed, what is refused, and a restart that computes nothing again."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from draftd.daemon import conversations
from draftd.daemon.conversations import Conversations
from draftd.ipc import Client
from draftd.ipc.errors import InvalidRequest
from tests.daemon.conftest import Daemon, Serve

STATE = bytes(range(256)) * 4
PROMPT = "Once upon a time a daemon kept what it had computed, and"


@pytest.fixture
def store(tmp_path: Path) -> Conversations:
    return Conversations(tmp_path, 10_000, lambda: "a model")


def save(store: Conversations, name: str, tokens: list[int], state: bytes = STATE) -> Path:
    store.save("app", name, tokens, state)
    store.settle()
    return store.path("app", name)


def test_what_is_saved_comes_back(store: Conversations) -> None:
    path = save(store, "chat", [1, 2, 300_000])
    assert store.tokens("app", "chat") == [1, 2, 300_000]
    assert store.load("app", "chat") == ([1, 2, 300_000], bytearray(STATE))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    save(store, "chat", [4], STATE[:8])
    assert store.load("app", "chat") == ([4], bytearray(STATE[:8]))
    assert [entry.name for entry in conversations.kept(path.parents[1])] == ["chat"]
    assert store.load("app", "other") is None
    assert store.load("other app", "chat") is None


@pytest.mark.parametrize("place", [0, 8, 12, 16, 48, 60, 150, 400, -1])
def test_a_changed_byte_is_refused(
    store: Conversations, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(store, "chat", [1, 2, 3])
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert store.load("app", "chat") is None
    assert "refused and computed again" in caplog.text


@pytest.mark.parametrize("length", [0, 10, 47, 60, 150, 600])
def test_a_file_cut_short_is_refused(
    store: Conversations, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(store, "chat", [1, 2, 3])
    path.write_bytes(path.read_bytes()[:length])
    assert store.load("app", "chat") is None
    assert "refused" in caplog.text
    store.tokens("app", "chat")  # raises nothing, whatever it finds
    list(conversations.kept(path.parents[1]))


def test_a_file_of_another_model_or_conversation_is_refused(
    store: Conversations, caplog: pytest.LogCaptureFixture
) -> None:
    path = save(store, "chat", [1, 2, 3])
    other = Conversations(path.parents[1], 10_000, lambda: "another model")
    assert other.load("app", "chat") is None, "it has a file of its own"
    path.rename(other.path("app", "chat"))
    assert other.load("app", "chat") is None
    assert "of another model" in caplog.text
    os.rename(other.path("app", "chat"), store.path("app", "mail"))
    assert store.load("app", "mail") is None
    assert "of another conversation" in caplog.text


def test_the_ones_used_longest_ago_make_room(
    store: Conversations, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for age, name in enumerate(["old", "used", "middle"]):
        path = save(store, name, [1], STATE * 2)
        os.utime(path, (1e9 + age, 1e9 + age))
    store.load("app", "used")
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
    assert store.load("app", "chat") is None


def test_what_a_crash_left_behind_is_removed(store: Conversations) -> None:
    path = save(store, "chat", [1])
    left = path.with_name("tmpabc.new")
    left.write_bytes(b"half")
    os.utime(left, (1e9, 1e9))
    save(store, "chat", [2])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("backend", ["transformers", "llama_cpp"])
def test_after_a_restart_a_conversation_goes_on_where_it_was(
    serve: Serve, tmp_path: Path, backend: str
) -> None:
    target = "target" if backend == "transformers" else "same.gguf"
    first = serve("--slots", "2", target=target, backend=backend)
    with Client(first.endpoint, name="app") as client:
        answer = client.complete(prompt=PROMPT, max_tokens=40, ignore_eos=True, conversation="tale")
        follow = {
            "tokens": [*PROMPT.encode(), *answer.tokens],
            "max_tokens": 30,
            "temperature": 1.0,
            "seed": 7,
            "ignore_eos": True,
        }
        undisturbed = client.complete(**follow, cache_prompt=False)
    end(first)
    second = serve("--slots", "2", target=target, backend=backend, share_prefixes="false")
    with Client(second.endpoint, name="other") as other:
        assert other.complete(**follow, conversation="tale").usage.cached_tokens == 0, "the name is the app's"
    with Client(second.endpoint, name="app") as client:
        restored = client.complete(**follow, conversation="tale")
    assert restored.usage.cached_tokens == restored.usage.prompt_tokens - 1 == len(PROMPT) + 39
    assert restored.stats.prefill_seconds == 0, "not one pass over the prompt"
    assert restored.tokens == undisturbed.tokens
    end(second)
    listed = cache(tmp_path, "list")
    assert "app: tale" in listed
    assert f"{len(PROMPT) + 69} tokens" in listed
    cache(tmp_path, "clear", "--endpoint", f"ipc://{tmp_path}/nobody.sock")
    assert cache(tmp_path, "list").startswith("0 conversations, 0.0 of 2000 MB")


def test_a_damaged_file_is_refused_and_the_answer_is_the_same(serve: Serve, tmp_path: Path) -> None:
    first = serve()
    with Client(first.endpoint, name="app") as client:
        answer = client.complete(prompt=PROMPT, max_tokens=20, conversation="tale")
    end(first)
    (file,) = (tmp_path / "state" / conversations.FOLDER).iterdir()
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    second = serve()
    with Client(second.endpoint, name="app") as client:
        again = client.complete(prompt=PROMPT, max_tokens=20, conversation="tale")
        assert (again.usage.cached_tokens, again.tokens) == (0, answer.tokens)
    assert "its bytes are not those that were written" in second.lines.read_text()


def test_an_app_without_a_name_has_no_conversations(shared: Daemon) -> None:
    with Client(shared.endpoint, name="") as client, pytest.raises(InvalidRequest, match="belongs to an app"):
        client.complete(prompt=PROMPT, conversation="tale")


def end(daemon: Daemon) -> None:
    daemon.process.terminate()
    daemon.process.wait(30)


def cache(tmp_path: Path, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "cache", *arguments],
        env={**os.environ, "DRAFTD_STATE_DIR": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
