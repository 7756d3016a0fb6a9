"""A request over real sockets: what it asks for is what comes, with and without speculation."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from draftd.ipc import Client, Done, Tokens
from draftd.ipc.errors import ContextOverflow, DraftdError, InvalidRequest, ModelNotFound
from tests.daemon.conftest import EXACT, Daemon
from tests.tiny import END_OF_TEXT

DAEMON = EXACT

PROMPT = "def add(a, b):"


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


def test_a_prompt_may_hold_special_tokens_by_id(shared: Daemon) -> None:
    assert shared.client().complete(tokens=[END_OF_TEXT, 97], max_tokens=3).usage.prompt_tokens == 2


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
