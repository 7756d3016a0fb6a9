"""Several answers of one request, through the real daemon: as asked for one by one, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest

from draftd.ipc import Done, Tokens
from draftd.ipc.session import reply
from tests.daemon.conftest import EXACT, Daemon, Serve, cancelling

DAEMON = EXACT

OPTIONS: dict[str, Any] = {"prompt": "def add(a, b):  # returns their sum", "temperature": 1.0, "seed": 30}


@pytest.mark.parametrize("how", [{"speculate": "model:4"}, {"speculate": False, "cache_prompt": False}])
def test_each_answer_is_the_one_its_seed_gives_alone(shared: Daemon, how: dict[str, Any]) -> None:
    client = shared.client()
    several = client.complete(**OPTIONS, **how, n=5, max_tokens=40, logprobs=0)  # of two slots
    alone = [
        client.complete(**{**OPTIONS, "seed": OPTIONS["seed"] + index}, max_tokens=40) for index in range(5)
    ]
    assert len({tuple(each.tokens) for each in several.answers}) > 1
    assert several.tokens == several.answers[0].tokens
    for one, other in zip(several.answers, alone, strict=True):
        assert (one.tokens, one.text, one.finish_reason) == (other.tokens, other.text, other.finish_reason)
        assert one.stats.seed == other.stats.seed
        assert [told.token for told in one.logprobs] == one.tokens
    assert several.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert several.usage.completion_tokens == sum(len(each.tokens) for each in several.answers)


@pytest.mark.parametrize("reuse", [True, False])
def test_the_prompt_is_computed_once(shared: Daemon, reuse: bool) -> None:
    prompt = f"# nobody asked this before, {reuse}"
    *_, done = shared.client().generate(prompt=prompt, n=5, max_tokens=10, cache_prompt=reuse)
    assert isinstance(done, Done)
    cached = [end.cached_tokens for end in done.answers]
    assert cached[1:] == [done.usage.prompt_tokens - 1] * 4
    assert cached[0] == done.usage.cached_tokens < 10


def test_an_end_of_one_answer_is_told_at_once_and_done_comes_once(shared: Daemon) -> None:
    client = shared.client()
    stop = client.complete(**OPTIONS, max_tokens=30).text[3:5]
    *parts, done = client.generate(**OPTIONS, n=3, max_tokens=30, stop=[stop])
    assert isinstance(done, Done)
    assert not any(isinstance(part, Done) for part in parts)
    ends = {}
    for part in parts:
        assert isinstance(part, Tokens)
        assert part.index not in ends, "nothing comes behind an answer's end"
        if part.finish_reason is not None:
            ends[part.index] = part.finish_reason
    assert [end.finish_reason for end in done.answers] == [ends[index] for index in range(3)]
    assert done.finish_reason == ends[0] == "stop"


def test_all_answers_survive_a_killed_engine(serve: Serve) -> None:
    daemon = serve("--slots", "2")
    client = daemon.client()
    # With what earlier answers said as its draft the last one would be over in a few passes.
    asked = {**OPTIONS, "n": 3, "max_tokens": 120, "ignore_eos": True, "cache_prompt": False}
    undisturbed = client.complete(**asked)
    engine = daemon.engine()
    parts: list[Tokens] = []
    killed = False
    for event in client.generate(**asked):
        if isinstance(event, Done):
            break
        parts.append(event)
        # One answer has ended, the others are under way or have yet to begin.
        if not killed and event.finish_reason is not None:
            daemon.halt(engine)
            engine.kill()
            killed = True
    assert killed
    assert isinstance(event, Done)
    again = reply(parts, event)
    assert [each.tokens for each in again.answers] == [each.tokens for each in undisturbed.answers]
    assert [each.text for each in again.answers] == [each.text for each in undisturbed.answers]
    assert again.usage.completion_tokens == 360
    daemon.wait_ready()


def test_a_cancel_ends_all_answers(serve: Serve) -> None:
    daemon = serve("--slots", "2")
    client = daemon.client()
    stream = client.generate(**OPTIONS, n=4, max_tokens=450, ignore_eos=True)
    with cancelling(daemon):
        next(stream)
        stream.close()
    daemon.wait_for(lambda status: status.requests["running"] == 0)
    assert len(client.complete(**OPTIONS, n=2, max_tokens=5).answers) == 2
