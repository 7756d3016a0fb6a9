"""Credit: what an app takes comes at once, and what it doesn't waits in one message."""

from __future__ import annotations

from typing import Any

import pytest

from draftd.daemon import apps as apps_module
from draftd.daemon.delivery import MOST
from draftd.ipc import codec, messages
from draftd.ipc.parts import Alternative, Logprob
from tests.daemon.desk import Desk, cancelled


def test_without_credit_tokens_wait_and_come_in_one_message(front: Desk) -> None:
    slow, quick = front.app(), front.app()
    first = front.generate(slow, credit=2)
    second = front.generate(quick)
    for token in range(5):
        front.tokens(first, token)
        front.tokens(second, token)
    assert [quick.hear()["tokens"] for _ in range(5)] == [[0], [1], [2], [3], [4]]
    assert [slow.hear()["tokens"] for _ in range(2)] == [[0], [1]]
    assert front.ask(slow, "ping", "p")["type"] == "pong", "a third message came before more credit"
    message = front.ask(slow, "credit", credit=1)
    assert (message["tokens"], message["text"], message["lengths"]) == ([2, 3, 4], "cde", [1, 1, 1])
    front.tokens(first, 5, 6)
    front.done(first)
    assert slow.hear()["tokens"] == [5, 6]
    assert slow.hear()["type"] == "done"
    assert first not in front.front.jobs.by_key


def test_credit_for_an_unknown_request_is_ignored(front: Desk) -> None:
    app = front.app()
    app.say("credit", "gone", credit=1)
    assert front.ask(app, "ping", "p")["type"] == "pong"


def test_what_waits_of_several_answers_is_kept_apart(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, n=2, credit=1)
    for index, letter in ((0, "a"), (1, "b"), (0, "c"), (1, "d")):
        part = {"index": index, "text": letter, "tokens": [index], "drafted": [False], "lengths": [1]}
        front.front.jobs.relay({"type": "tokens", "key": key, "rounds": [0, 0], "tool_calls": [], **part})
    ending = {"finish_reason": "length", "completion_tokens": 2, "stats": {}, "books": {}}
    front.front.jobs.relay({"type": "ended", "key": key, "index": 1, "ending": ending})
    assert app.hear()["text"] == "a"
    assert front.ask(app, "credit", credit=2)["text"] == "bd"
    assert app.hear()["text"] == "c"
    (job,) = front.front.jobs.by_key.values()
    assert (job.emitted, job.characters) == ([[0, 0], [1, 1]], [2, 2])
    assert [end is not None for end in job.endings] == [False, True]


def test_an_app_that_does_not_read_loses_nothing_and_holds_up_nobody(
    front: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, quick = front.app(rcvhwm=1, rcvbuf=4096), front.app()
    key, other = front.generate(stuck), front.generate(quick)
    count = front.stuff(key)
    assert count >= apps_module.SEND_QUEUE + 100
    front.tokens(other, 7)
    assert quick.hear()["tokens"] == [7]
    front.done(key)
    got: list[int] = []
    while (message := front.hear(stuck))["type"] == "tokens":
        got += message["tokens"]
    assert got == list(range(count))
    assert message["type"] == "done"


def test_what_adds_up_comes_in_messages_of_a_bounded_length(front: Desk) -> None:
    app = front.app()
    key = front.generate(app, credit=1)
    for token in range(2 * MOST + 10):
        front.tokens(key, token)
    assert app.hear()["tokens"] == [0]
    app.say("credit", credit=3)
    front.turn()
    got = [app.hear()["tokens"] for _ in range(3)]
    assert list(map(len, got)) == [MOST, MOST, 9]
    assert [token for part in got for token in part] == list(range(1, 2 * MOST + 10))


def test_a_whole_answer_at_once_is_cut_with_the_text_of_its_tokens(front: Desk) -> None:
    app = front.app()
    key = front.generate(app)
    count = 2 * MOST + 5
    lengths = [token % 3 for token in range(count)]
    pieces = [chr(97 + token % 26) * length for token, length in enumerate(lengths)]
    top = {"token": 1, "text": "x", "bytes": [120]}
    whole = {
        "index": 0,
        "text": "".join(pieces) + "end",  # what was held back comes behind the last token
        "tokens": list(range(count)),
        "drafted": [token % 2 == 0 for token in range(count)],
        "lengths": lengths,
        "logprobs": [{**top, "logprob": -float(token)} for token in range(count)],
        "tool_calls": [],
    }
    front.front.jobs.relay({"type": "tokens", "key": key, "rounds": [0, 0], **whole})
    got = [app.hear() for _ in range(3)]
    assert [len(each["tokens"]) for each in got] == [MOST, MOST, 5]
    for at, each in enumerate(got):
        here = slice(at * MOST, (at + 1) * MOST)
        assert each["text"] == "".join(pieces[here]) + ("end" if at == 2 else "")
        assert each["tokens"] == list(range(count))[here]
        assert [told["logprob"] for told in each["logprobs"]] == [-float(token) for token in each["tokens"]]
        assert (len(each["drafted"]), each["lengths"]) == (len(each["tokens"]), lengths[here])


def test_the_longest_message_fits_a_frame_with_all_alternatives() -> None:
    piece: dict[str, Any] = {"token": 150_000, "text": "x" * 32, "bytes": [200] * 32, "logprob": -1.5}
    told = Logprob(**piece, top=[Alternative(**piece)] * 20)
    whole = messages.Tokens(
        id="1", text="x" * 32 * MOST, tokens=[150_000] * MOST, drafted=[True] * MOST, logprobs=[told] * MOST
    )
    assert len(codec.decode(codec.encode(whole))["logprobs"]) == MOST


@pytest.mark.parametrize("kind", ["tokens", "done"])
def test_what_no_frame_can_hold_ends_its_request_and_nothing_else(front: Desk, kind: str) -> None:
    app, other = front.app(), front.app()
    key, kept = front.generate(app), front.generate(other)
    if kind == "tokens":
        part = {"text": "x" * codec.MAX_FRAME, "tokens": [1], "drafted": [False], "lengths": [1]}
        front.front.jobs.relay({"type": "tokens", "key": key, "rounds": [0, 0], "tool_calls": [], **part})
    else:
        front.done(key, drafted_by=["x" * codec.MAX_FRAME])
    error = app.hear()
    assert (error["type"], error["id"], error["code"]) == ("error", "1", "internal")
    assert cancelled(front) == ([key] if kind == "tokens" else [])
    assert list(front.front.jobs.by_key) == [kept]
    assert front.front.jobs.lifetime.leases == {kept}
    front.tokens(kept, 1)
    assert other.hear()["tokens"] == [1]
    assert front.ask(app, "ping", "p")["type"] == "pong"
