"""`draftd status` against a scripted daemon."""

from __future__ import annotations

import json

from draftd.ipc import messages
from tests.daemon.commands import draftd
from tests.ipc import scripted
from tests.ipc.scripted import Say, ScriptedDaemon


def test_status_shows_a_table(daemon: ScriptedDaemon) -> None:
    lines = draftd("status", endpoint=daemon.endpoint).stdout.splitlines()
    assert lines[0].split() == ["state", "ready"]
    assert lines[1].split() == ["pair", "tiny"]


def test_status_while_loading(daemon: ScriptedDaemon) -> None:
    def script(message: messages.ClientMessage, say: Say) -> None:
        if isinstance(message, messages.GetStatus):
            say(
                messages.Status(
                    id=message.id, state="loading", detail="loading 43 %", progress=0.43, pair="tiny"
                )
            )
        else:
            scripted.answer(message, say)

    daemon.script = script
    assert draftd("status", endpoint=daemon.endpoint).stdout.splitlines()[0].split(maxsplit=1) == [
        "state",
        "loading 43 %",
    ]
    now = json.loads(draftd("status", "--json", endpoint=daemon.endpoint).stdout)
    assert (now["state"], now["progress"]) == ("loading", 0.43)
