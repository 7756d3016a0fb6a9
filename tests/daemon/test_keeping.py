"""Conversations in use: whose they are and of which model, and a restart that computes nothing again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from draftd.daemon import conversations, keeping
from draftd.daemon.conversations import OWN, Conversation, Conversations
from draftd.daemon.engine import Engine
from draftd.daemon.keeping import Keeping
from draftd.daemon.pulse import READING
from draftd.daemon.request import Request
from draftd.daemon.settings import Settings
from draftd.ipc import Client
from draftd.ipc.errors import InvalidRequest
from draftd.models.sampling import Sampling
from tests.daemon.conftest import Daemon, Serve
from tests.daemon.desk import desk
from tests.daemon.test_conversations import save
from tests.daemon.traffic import run
from tests.fakes import TableTarget

PROMPT = "Once upon a time a daemon kept what it had computed, and"


def test_a_request_starts_from_what_its_own_users_app_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats: list[tuple[int, list[Request]]] = []
    engine = Engine(
        TableTarget(),
        beat=lambda stage, _, batch: beats.append((stage, [work.request for work in batch])),
    )
    keeping = Keeping(Settings.model_validate({"state_dir": tmp_path}), {}, engine)
    keeping.conversations = Conversations(tmp_path, 10_000, lambda: "a model")
    prompt = [1, 2, 3] * 10

    def ask(user: str) -> Request:
        request = Request(0, list(prompt), len(prompt), len(prompt) + 4, Sampling(), frozenset())
        keeping.load(request, {"user": user, "app": "editor", "conversation": "tale"})
        return request

    first = ask("1")
    run(engine, first)
    keeping.save(first)
    keeping.conversations.settle()
    engine.forget()
    read, load = list[Conversation](), keeping.conversations.load

    def counted(which: Conversation) -> tuple[list[int], memoryview] | None:
        read.append(which)
        return load(which)

    monkeypatch.setattr(keeping.conversations, "load", counted)
    others, again = ask("2"), ask("1")
    assert read == [], "what waits for a slot holds no cache"
    run(engine, others)
    engine.forget()
    beats.clear()
    run(engine, again)
    assert beats[0] == (READING, [again]), "a disk that hangs is blamed on nobody else"
    assert [others.reused, again.reused, len(read)] == [0, len(prompt) - 1, 1]


def test_a_model_whose_files_are_gone_answers_without_conversations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory", "model.gguf")

    keeping = Keeping(Settings.model_validate({"state_dir": tmp_path}), {}, Engine(TableTarget()))
    keeping.conversations = Conversations(tmp_path, 10_000, gone)
    request = Request(0, [1, 2], 2, 4, Sampling(), frozenset())
    keeping.load(request, {"user": "1", "app": "editor", "conversation": "tale"})
    keeping.save(request)
    assert (request.conversation, request.stored) == (None, None)
    assert "a conversation is not kept" in caplog.text


def test_nothing_is_kept_by_the_name_of_a_model_that_was_put_in_the_loaded_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "model.gguf"
    weights.write_text("one")
    monkeypatch.setattr(keeping, "cached_path", lambda model, cache_dir: weights)
    settings = Settings.model_validate({"state_dir": tmp_path, "cache_dir": tmp_path / "cache"})

    def loaded() -> Keeping:
        return Keeping(settings, {"backend": "transformers"}, Engine(TableTarget()))

    def kept(by: Keeping) -> bool:
        request = Request(0, [1, 2], 2, 4, Sampling(), frozenset())
        by.load(request, {"user": "1", "app": "editor", "conversation": "tale"})
        return request.conversation is not None

    known, unknown = loaded(), loaded()
    assert kept(known)
    weights.unlink()
    weights.write_text("another")
    assert kept(known), "it was told from others before"
    assert not kept(unknown)
    assert "a conversation is not kept, for the model's files are not those loaded" in caplog.text
    assert kept(loaded())


def test_a_cache_of_another_context_is_another_models_in_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long or short rotary factors by the context, where a model has both."""
    monkeypatch.setattr(keeping, "_weights", lambda model, settings, beat: ["the weights"])

    shipped: dict[str, Any] = {}

    def identity(backend: str, context: int) -> str:
        return keeping.identity(Settings(**shipped), {"backend": backend, "context": context})

    assert identity("llama_cpp", 2048) == identity("llama_cpp", 2048) != identity("llama_cpp", 32768)
    assert identity("transformers", 2048) == identity("transformers", 32768) != identity("llama_cpp", 32768)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_a_directory_that_differs_in_a_file_is_of_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = Settings.model_validate({"cache_dir": tmp_path / "cache"})

    def identity(folder: str, content: str) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
        monkeypatch.setattr(keeping, "cached_path", lambda model, cache_dir: tmp_path / folder)
        return keeping.identity(settings, {"backend": "transformers"})

    assert identity("one", "a") == identity("same", "a") != identity("other", "b")


def test_each_file_of_a_model_is_read_in_a_step_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    for index in range(3):
        (tmp_path / "model" / f"{index}.safetensors").write_text(str(index))
    monkeypatch.setattr(keeping, "cached_path", lambda model, cache_dir: tmp_path / "model")
    beats: list[tuple[int, list[Request]]] = []
    engine = Engine(
        TableTarget(),
        beat=lambda stage, _, batch: beats.append((stage, [work.request for work in batch])),
    )
    settings = Settings.model_validate({"state_dir": tmp_path, "cache_dir": tmp_path / "cache"})
    request = Request(0, [1, 2], 2, 4, Sampling(), frozenset())
    for _ in range(2):  # the second time all is known
        Keeping(settings, {"backend": "transformers"}, engine).load(
            request, {"user": "1", "app": "editor", "conversation": "tale"}
        )
    assert beats == [(READING, [request])] * 6


def test_the_engine_is_told_whose_app_a_conversation_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with desk(tmp_path, share_history=True, share_prefixes=True) as front:

        def whose() -> list[str]:
            app = front.app()
            front.ask(app, "hello", client="editor")
            front.generate(app, conversation="tale")
            return [front.told[-1][name] for name in ("user", "app", "conversation")]

        assert whose() == [OWN, "editor", "tale"]
        monkeypatch.setattr(front.front.peers, "check", lambda client, frame: "12345")
        assert whose() == ["12345", "editor", "tale"], "whatever else is shared"


def test_a_list_names_users_where_there_are_several(tmp_path: Path) -> None:
    store = Conversations(tmp_path / "state", 10_000, lambda: "a model")
    save(store, "chat", [1], user="0")
    assert "  app: chat\n" in cache(tmp_path, "list")
    for user in ("4000000000", "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"):
        save(store, "chat", [1], user=user)
    listed = cache(tmp_path, "list")
    assert "  app: chat  (root)\n" in listed
    assert "  app: chat  (user 4000000000)\n" in listed
    assert "  app: chat  (key Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID)\n" in listed
    assert "3 conversations" in listed


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
