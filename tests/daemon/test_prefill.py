"""Prefills, priorities and shared prefixes through a real daemon."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from draftd.ipc import Client
from draftd.ipc.errors import ContextOverflow, InvalidRequest
from draftd.ipc.messages import Done
from tests.daemon.conftest import EXACT, Daemon, Serve

DAEMON = EXACT

TYPED = "Write a sonnet about a daemon that speculates, and let the last line be a question about truth."


def turn(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]}


def test_a_request_computes_only_what_was_not_prefilled(shared: Daemon) -> None:
    client = shared.client()
    expected = client.complete(**turn(TYPED), max_tokens=20, cache_prompt=False)
    client.clear()
    for begin, end in ((0, 30), (30, 60), (60, len(TYPED))):
        told = client.prefill(**turn(TYPED[:end]))
        assert told is not None
        assert told.state == "complete"
        assert told.cached_tokens + told.computed_tokens == told.prompt_tokens
        assert begin == 0 or told.computed_tokens < end - begin + 25, "what was new, and the closing marks"
    answer = client.complete(**turn(TYPED), max_tokens=20)
    assert answer.usage.cached_tokens == answer.usage.prompt_tokens - 1
    assert answer.tokens == expected.tokens


def test_what_is_typed_quickly_is_superseded(shared: Daemon) -> None:
    client = shared.client()
    for end in range(1, len(TYPED)):
        client.prefill(wait=False, **turn(TYPED[:end]))
    told = client.prefill(**turn(TYPED))
    assert told is not None
    assert told.state == "complete"


def test_a_prefill_that_cannot_be_is_answered_with_an_error(shared: Daemon) -> None:
    client = shared.client()
    with pytest.raises(ContextOverflow, match="the context holds 512"):
        client.prefill(prompt="x" * 600)
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        client.prefill(tokens=[100_000])
    told = client.prefill(prompt="x" * 20)
    assert told is not None


def test_an_app_starts_from_what_another_computed_unless_prefixes_are_its_own(
    shared: Daemon, serve: Serve
) -> None:
    apart = serve(share_prefixes="false")
    for daemon, expected in ((shared, len(TYPED) - 1), (apart, 0)):
        with Client(daemon.endpoint, name="one") as one, Client(daemon.endpoint, name="two") as two:
            one.complete(prompt=TYPED, max_tokens=2)
            assert two.complete(prompt=TYPED, max_tokens=2).usage.cached_tokens == expected
            assert one.complete(prompt=TYPED, max_tokens=2).usage.cached_tokens == len(TYPED) - 1


@pytest.mark.parametrize("backend", ["transformers", "llama_cpp"])
def test_an_interactive_request_preempts_and_the_other_goes_on_unchanged(serve: Serve, backend: str) -> None:
    target = "target" if backend == "transformers" else "same.gguf"
    daemon = serve("--slots", "1", target=target, backend=backend, context="1000")
    long = {"prompt": TYPED, "max_tokens": 800, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    client, other = daemon.client(), daemon.client()
    undisturbed = client.complete(**long)
    quick = other.complete(prompt="Quick!", max_tokens=5, ignore_eos=True)
    events = []
    with closing(client.generate(**long, priority="background", speculate=False)) as stream:
        events.append(next(stream))
        answer = other.complete(prompt="Quick!", max_tokens=5, ignore_eos=True)
        running = daemon.status().requests["running"]
        events += stream
    assert running == 1, "the background request had not ended before the interactive one"
    assert answer.tokens == quick.tokens
    assert isinstance(events[-1], Done)
    tokens = [token for event in events[:-1] if not isinstance(event, Done) for token in event.tokens]
    assert tokens == undisturbed.tokens
