"""A full queue and an overfull machine refuse with a hint when to try again."""

from __future__ import annotations

import pytest

from draftd.daemon.admission import LONGEST, UNKNOWN, Admission
from draftd.daemon.governor import Rung
from draftd.daemon.settings import Settings
from draftd.ipc.errors import Overloaded
from draftd.ipc.messages import Generate
from tests.daemon.desk import Desk


def test_a_full_queue_is_refused_with_a_hint(front: Desk) -> None:
    app = front.app()
    for request in "123":
        front.generate(app, request)
    error = front.ask(app, "generate", "4", prompt="x")
    assert (error["code"], error["retry_after"]) == ("overloaded", UNKNOWN)
    front.done(1)
    assert app.hear()["type"] == "done"
    assert front.generate(app, "4")


def test_as_many_prefills_as_there_are_places_do_not_refuse_the_next_of_one_app(front: Desk) -> None:
    *apps, late = [front.app() for _ in range(4)]
    for app in apps:
        app.say("prefill", prompt="x")
        front.turn()
    assert front.ask(late, "prefill", prompt="x")["code"] == "overloaded"
    told = front.ask(apps[0], "prefill", "2", prompt="xy")
    assert (told["type"], told["id"], told["state"]) == ("prefilled", "1", "superseded")


def test_the_hint_is_the_pace_of_recent_ends() -> None:
    admission, settings = Admission(), Settings.model_validate({"slots": 1, "queue": 0})
    for moment in (0.0, 2.0, 4.0, 6.0):
        admission.ended(moment)
    request = Generate(id="1", prompt="x")

    def refused() -> None:
        with pytest.raises(Overloaded):
            admission.admit(request, settings, 1)

    refused()
    assert admission.retry_after(6.5) == 2.0
    refused()
    assert admission.retry_after(6.5) == 4.0, "the second refused comes after the first"
    admission.ended(8.0)
    refused()
    assert admission.retry_after(8.5) == 2.0, "a place became free: the count begins anew"
    assert admission.retry_after(16.0) == 8.0, "nothing has ended for longer than the pace"
    assert admission.retry_after(1000.0) == LONGEST
    admission.ended(1001.0)
    admission.admit(request, settings, 0)


def test_who_is_refused_for_the_machine_s_sake_is_told_when_to_try_again(front: Desk) -> None:
    governor = front.front.governing.governor
    governor.rung, governor.why = Rung.UNLOAD, "3 % of the memory is available"
    for kind in ("generate", "prefill", "load"):
        wrong = front.ask(front.app(), kind, **({} if kind == "load" else {"prompt": "x"}))
        assert (wrong["code"], wrong["retry_after"]) == ("overloaded", 2 * 4 * governor.marks.dwell)
        assert "since 3 % of the memory is available: try again in 40 s" in wrong["message"]
