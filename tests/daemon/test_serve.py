"""The real daemon over real sockets: streams, cancels, dying clients and engines, pairs that do not load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc import Client, Done, Tokens
from draftd.ipc.errors import ContextOverflow, DraftdError, InvalidRequest, ModelNotFound, Overloaded
from tests.daemon.conftest import Daemon, Serve
from tests.tiny import END_OF_TEXT, retokenize, write_tiny
from tests.tiny_gguf import write_gguf

PROMPT = "def add(a, b):"
# so many that less than nine tenths of a text's tokens are letters
PAIRS = [
    (one, other) for one, other in ("Ġt", "Ġa", "in", "er", "on", "re", "at", "en", "es", "or", "Ġs", "ou")
]


def test_an_answer_streams_and_does_not_depend_on_speculation(shared: Daemon) -> None:
    client = shared.client()
    for temperature in (0.0, 0.7, 1.5):
        options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": temperature, "seed": 5}
        *tokens, done = list(client.generate(**options))
        assert isinstance(done, Done)
        for event in tokens:
            assert isinstance(event, Tokens)
            assert len(event.tokens) == len(event.drafted) == len(event.lengths)
            assert sum(event.lengths) == len(event.text) or not event.tokens
        drafted = client.complete(**options, speculate="model:6")
        plain = client.complete(**options, speculate=False)
        streamed = [token for event in tokens if isinstance(event, Tokens) for token in event.tokens]
        assert streamed == drafted.tokens == plain.tokens
        assert drafted.text == plain.text
        assert drafted.stats.drafted > 0
        assert plain.stats.drafted == 0
        stop_token = plain.finish_reason == "stop"
        assert plain.stats.rounds == plain.usage.completion_tokens + stop_token


def test_llama_cpp_as_the_target(serve: Serve) -> None:
    client = serve(target="same.gguf", backend="llama_cpp").client()
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.7, "seed": 5}
    drafted = client.complete(**options, speculate="model:6")
    plain = client.complete(**options, speculate=False)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.accepted > 0


def test_a_request_without_a_seed_can_be_had_again(shared: Daemon) -> None:
    client = shared.client()
    first = client.complete(prompt=PROMPT, max_tokens=20, temperature=1.0)
    again = client.complete(prompt=PROMPT, max_tokens=20, temperature=1.0, seed=first.stats.seed)
    other = client.complete(prompt=PROMPT, max_tokens=20, temperature=1.0)
    assert first.tokens == again.tokens != other.tokens


def test_chat_and_plain_prompts_and_tokens(shared: Daemon) -> None:
    client = shared.client()
    chat = client.complete(messages=[{"role": "user", "content": "Hi"}], max_tokens=4)
    assert chat.usage.prompt_tokens == len("user\nHi\nassistant\n") + 3
    assert (
        client.complete(prompt="ab", max_tokens=4).tokens
        == client.complete(tokens=[97, 98], max_tokens=4).tokens
    )


def test_a_stop_string_ends_the_text_before_it(shared: Daemon) -> None:
    client = shared.client()
    whole = client.complete(prompt=PROMPT, max_tokens=60, temperature=1.0, seed=3)
    stop = whole.text[20:22]
    cut = client.complete(prompt=PROMPT, max_tokens=60, temperature=1.0, seed=3, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_two_clients_at_once(shared: Daemon) -> None:
    daemon = shared
    alone = [daemon.client().complete(prompt=PROMPT, max_tokens=60, seed=s, temperature=1.0) for s in (1, 2)]
    replies: dict[int, list[int]] = {}

    def ask(seed: int) -> None:
        with Client(daemon.endpoint) as client:
            replies[seed] = client.complete(prompt=PROMPT, max_tokens=60, seed=seed, temperature=1.0).tokens

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert replies == {1: alone[0].tokens, 2: alone[1].tokens}


def test_cancel_in_mid_stream_frees_the_slot(serve: Serve) -> None:
    daemon = serve("--slots", "1")
    client = daemon.client()
    stream = client.generate(prompt=PROMPT, max_tokens=450, temperature=1.0, seed=1)
    next(stream)
    stream.close()  # cancels
    assert len(client.complete(prompt="ab", max_tokens=5).tokens) == 5
    daemon.wait_for(lambda status: status.requests["running"] == 0)


KILLED_CLIENT = """
import sys
from draftd.ipc import Client
for event in Client(sys.argv[1]).generate(prompt="ab", max_tokens=480, temperature=1.0, seed=1):
    print("got", flush=True)
"""


def test_a_client_killed_in_mid_stream_loses_its_request(serve: Serve) -> None:
    daemon = serve("--slots", "1")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_CLIENT, daemon.endpoint], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "got\n"
        child.kill()
        child.wait()
    daemon.wait_for(lambda status: status.requests["running"] == 0)
    assert len(daemon.client().complete(prompt="ab", max_tokens=5).tokens) == 5


def test_the_engine_killed_before_it_is_ready_is_replaced_and_requests_wait(serve: Serve) -> None:
    daemon = serve(wait=False)
    daemon.wait_for(lambda status: status.state == "loading")
    replies = []
    client = daemon.client()
    asking = threading.Thread(target=lambda: replies.append(client.complete(prompt=PROMPT, max_tokens=5)))
    daemon.engine().send_signal(signal.SIGKILL)
    asking.start()
    asking.join(60)
    assert len(replies[0].tokens) == 5


def test_the_engine_killed_in_mid_stream_continues_with_the_same_tokens(serve: Serve) -> None:
    daemon = serve()
    client = daemon.client()
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 300, "temperature": 1.0, "seed": 9}
    undisturbed = client.complete(**options)
    tokens: list[int] = []
    text = ""
    killed = False
    for event in client.generate(**options):
        if isinstance(event, Tokens):
            tokens += event.tokens
            text += event.text
        if not killed and len(tokens) > 20:
            daemon.engine().send_signal(signal.SIGKILL)
            killed = True
    assert tokens == undisturbed.tokens
    assert text == undisturbed.text
    daemon.wait_ready()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"prompt": "x" * 600}, ContextOverflow),
        ({"prompt": ""}, InvalidRequest),
        ({"prompt": "x", "model": "other"}, ModelNotFound),
        ({"tokens": [100_000]}, InvalidRequest),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    shared: Daemon, options: dict[str, Any], kind: type[DraftdError]
) -> None:
    client = shared.client()
    with pytest.raises(kind):
        client.complete(**options)
    assert len(client.complete(prompt="ab", max_tokens=3).tokens) == 3


def test_a_full_queue_is_overloaded(serve: Serve) -> None:
    client = serve("--slots", "1", queue="1").client()
    streams = [client.generate(prompt="ab", max_tokens=480, temperature=1.0, seed=s) for s in (1, 2)]
    next(streams[0])
    waiting = threading.Thread(target=lambda: next(streams[1]))
    waiting.start()
    with Client(client.endpoint) as other:
        while other.status().requests["waiting"] == 0:
            pass
        with pytest.raises(Overloaded, match="try again"):
            other.complete(prompt="ab", max_tokens=3)
    streams[0].close()
    waiting.join(60)
    streams[1].close()


def test_a_draft_with_another_tokenizer_drafts_by_shared_tokens(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    other = retokenize(tiny_files / "target", tmp_path / "other")
    daemon = serve(draft=write_gguf(other, tmp_path / "other.gguf"))
    assert daemon.status().engine["tokenizers"] == (
        "different tokenizers: drafting by shared tokens (100 % of a sample text's tokens are shared)"
    )
    answers_are_the_targets(daemon)


def test_a_draft_that_shares_too_few_tokens_drafts_by_text(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    target = retokenize(tiny_files / "target", tmp_path / "target", PAIRS)
    daemon = serve(target=target)
    said = daemon.status().engine["tokenizers"]
    assert said.startswith("different tokenizers: drafting by text (")
    answers_are_the_targets(daemon)


def answers_are_the_targets(daemon: Daemon) -> None:
    client = daemon.client()
    accepted = 0
    for seed in range(3):
        options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.7, "seed": seed}
        drafted = client.complete(**options, speculate="model:5")
        alone = client.complete(**options, speculate=False, cache_prompt=False)
        assert drafted.tokens == alone.tokens
        accepted += drafted.stats.accepted
    assert accepted > 0


def test_an_incompatible_draft_leaves_the_target_alone_and_says_so(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    other = write_tiny(tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text("utf-8")
    lacking = tokenizer.replace('"x": 120', '"xx": 120')
    assert lacking != tokenizer
    (other / "tokenizer.json").write_text(lacking, "utf-8")
    write_gguf(other, tmp_path / "other.gguf")
    daemon = serve(draft=tmp_path / "other.gguf")
    refused = daemon.status().engine["draft_refused"]
    assert "can't spell an ordinary text" in refused
    assert len(daemon.client().complete(prompt="ab", max_tokens=5).tokens) == 5


def test_a_prompt_may_hold_special_tokens_by_id(shared: Daemon) -> None:
    assert shared.client().complete(tokens=[END_OF_TEXT, 97], max_tokens=3).usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("break_it", "status", "sentence"),
    [
        (lambda root: (root / "gone.gguf", "target"), 4, "there is no"),
        (lambda root: ("draft.gguf", root / "gone"), 4, "there is no"),
        (lambda root: (_write(root / "bad.gguf", b"GGUF" + os.urandom(200)), "target"), 4, "bad.gguf"),
        (lambda root: (_write(root / "no.gguf", b"hello"), "target"), 4, "no.gguf"),
    ],
)
def test_a_pair_that_cannot_load_ends_the_daemon_with_a_sentence(
    serve: Serve, tmp_path: Path, break_it: Any, status: int, sentence: str
) -> None:
    draft, target = break_it(tmp_path)
    daemon = serve(draft=draft, target=target, wait=False)
    assert daemon.process.wait(60) == status
    last = daemon.lines.read_text().strip().splitlines()[-1]
    assert last.startswith("draftd: ")
    assert sentence in last


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_second_daemon_on_one_endpoint_is_refused(shared: Daemon) -> None:
    first = shared
    second = subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "serve", "--pair", "tiny", "--endpoint", first.endpoint],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 5
    assert str(first.process.pid) in second.stderr
    assert first.status().state == "ready"


def test_sigterm_ends_streams_with_a_reason_and_leaves_nothing_behind(serve: Serve) -> None:
    daemon = serve()
    engine = daemon.engine()
    stream = daemon.client().generate(prompt="ab", max_tokens=480, temperature=1.0, seed=1)
    next(stream)
    daemon.process.terminate()
    with pytest.raises(DraftdError) as ended:
        list(stream)
    assert ended.value.code == "cancelled"
    assert daemon.process.wait(20) == 0
    assert not engine.is_running()
    assert list(Path(daemon.endpoint.removeprefix("ipc://")).parent.iterdir()) == []


def test_the_engine_dies_with_a_killed_front(serve: Serve) -> None:
    daemon = serve()
    engine = daemon.engine()
    daemon.process.kill()
    engine.wait(20)


def test_status_tells_what_was_learnt_and_requests_name_their_sources(serve: Serve) -> None:
    daemon = serve()
    client = daemon.client()
    assert daemon.status().learnt == {}
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 21}
    first = client.complete(**options)
    assert 0 < sum(first.stats.sources.values()) < first.stats.rounds  # the prompt's pass drafts nothing
    again = client.complete(**options, speculate="suffix:32")
    assert again.tokens == first.tokens
    assert again.stats.sources["suffix"] > 0
    for stats in (first.stats, again.stats):  # and round by round
        assert len(stats.drafted_by) == stats.rounds
        for source in ("suffix", "model", "chain"):
            assert stats.drafted_by.count(source) == stats.sources.get(source, 0)
    assert again.stats.rounds < 20, "the earlier answer is replayed as a draft"
    learnt = daemon.wait_for(lambda status: bool(status.learnt)).learnt
    assert learnt["target_ms"]["1"] > 0
    assert learnt["draft_ms"]["1"] > 0
    assert learnt["choices"]
    told = subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "status", "--pair", "--endpoint", daemon.endpoint],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    head = next(index for index, line in enumerate(told) if line.startswith("drafted by"))
    assert re.fullmatch(r"(model|suffix) +\w+ +\d\.\d\d to \d\.\d\d( +\d+){2} +\d\.\d\d", told[head + 1])
    for line, begins in zip(
        told[-3:], ("target pass, ms by rows", "draft pass, ms", "rounds drafted"), strict=True
    ):
        assert line.startswith(begins)
        assert ": " in line


def test_the_history_survives_a_restart_and_can_be_cleared(serve: Serve, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 22}
    first = serve().client().complete(**options)
    second = serve().client().complete(**options, speculate="suffix:32")
    assert second.tokens == first.tokens
    assert second.stats.rounds < 20
    cleared = clear_cache(tmp_path, f"ipc://{tmp_path}/nobody.sock")
    assert cleared == f"removed 1 files of {tmp_path / 'state'}; no daemon is running\n"
    third = serve().client().complete(**options, speculate="suffix:32")
    assert third.tokens == first.tokens
    assert third.stats.rounds > second.stats.rounds


def test_a_running_daemon_forgets_at_once(serve: Serve, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 22}
    daemon = serve()
    client = daemon.client()
    client.complete(**options)
    again = client.complete(**options, speculate="suffix:32")
    assert again.stats.rounds < 20
    kept = list((tmp_path / "state" / "suffix").glob("[0-9a-f]*"))
    assert len(kept) == 1
    cleared = clear_cache(tmp_path, daemon.endpoint)
    assert cleared == f"removed 1 files of {tmp_path / 'state'}; the daemon forgot it\n"
    assert not kept[0].exists()
    anew = client.complete(**options, speculate="suffix:32")
    assert anew.tokens == again.tokens
    assert anew.stats.rounds > again.stats.rounds
    client.clear(learnt=True)
    assert daemon.status().learnt == {}
    last = client.complete(**options, speculate="suffix:2")
    learnt = daemon.wait_for(lambda status: bool(status.learnt)).learnt
    assert learnt["choices"] == last.stats.sources


def clear_cache(tmp_path: Path, endpoint: str) -> str:
    environment = {"DRAFTD_STATE_DIR": str(tmp_path / "state"), "DRAFTD_CONFIG": str(tmp_path / "none.toml")}
    done = subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "cache", "clear", "--endpoint", endpoint],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_penalties_bias_and_stops_hold_with_and_without_speculation(shared: Daemon) -> None:
    client = shared.client()
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.9, "seed": 4}
    shaped: dict[str, Any] = {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "logit_bias": {"101": -1e9, "97": 4.0},
        "ignore_eos": True,
    }
    drafted = client.complete(**options, **shaped, speculate="model:6")
    alone = client.complete(**options, **shaped, speculate=False)
    assert drafted.tokens == alone.tokens
    assert len(drafted.tokens) == 40
    assert 101 not in drafted.tokens
    stopped = client.complete(**options, **shaped, stop_tokens=[drafted.tokens[10]])
    assert stopped.tokens == drafted.tokens[: drafted.tokens.index(drafted.tokens[10])]
    assert stopped.finish_reason == "stop"
    client.close()


def test_logprobs_are_the_targets_own_with_and_without_speculation(shared: Daemon) -> None:
    client = shared.client()
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 30, "ignore_eos": True}
    plain = client.complete(**options, logprobs=3, speculate=False)
    assert [told.token for told in plain.logprobs] == plain.tokens
    assert b"".join(bytes(told.bytes) for told in plain.logprobs).decode("utf-8", "replace") == plain.text
    for told in plain.logprobs:
        assert len(told.top) == 3
        assert told.top[0].token == told.token, "greedy: the likeliest"
        assert told.top[0].logprob == told.logprob >= told.top[1].logprob >= told.top[2].logprob
        assert told.logprob < 0
    assert client.complete(**options).logprobs == []
    # What a request does to the distribution leaves what it is told of it alone.
    forced = {"logit_bias": {"97": 100.0}, "temperature": 0.8, "seed": 4, "presence_penalty": 1.0}
    first = client.complete(**options, **forced, logprobs=0, speculate=False)
    assert first.tokens[0] == 97
    assert first.logprobs[0].logprob < -1
    assert first.logprobs[0].top == []
    drafted = client.complete(**options, **forced, logprobs=2, speculate="model:6")
    assert drafted.tokens == first.tokens
    for one, other in zip(drafted.logprobs, first.logprobs, strict=True):
        assert abs(one.logprob - other.logprob) < 1e-3
    client.close()


def test_a_schema_is_followed_with_and_without_speculation(shared: Daemon) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    client = shared.client()
    for seed in range(3):
        options: dict[str, Any] = {
            "prompt": PROMPT,
            "max_tokens": 120,
            "temperature": 1.0,
            "seed": seed,
            "grammar": {"kind": "json_schema", "source": schema},
        }
        alone = client.complete(**options, speculate=False)
        for mode in ("model:6", "chain:6", "auto"):
            assert client.complete(**options, speculate=mode).tokens == alone.tokens
        assert alone.finish_reason == "stop"
        assert set(json.loads(alone.text)) == {"name", "age"}
    with pytest.raises(InvalidRequest, match="not a regex"):
        client.complete(prompt="x", grammar={"kind": "regex", "source": "(["})
    client.close()
