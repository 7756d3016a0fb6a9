"""What a reload tells the engine and the one after it, and which requests it ends."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest

from draftd.daemon import logs
from draftd.daemon.governor import Rung
from draftd.daemon.settings import Settings
from draftd.ipc.errors import CorruptModel, OutOfMemory, Overloaded
from draftd.models import fetch
from tests.daemon.desk import desk


def test_how_to_log_reaches_the_engine_that_runs_and_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"log_level": "debug", "log_content": True}
    told: list[dict[str, Any]] = []
    here: list[tuple[str, bool]] = []
    monkeypatch.setattr(logs, "set_up", lambda level, content: here.append((level, content)))
    with desk(tmp_path) as made:
        front = made.front
        monkeypatch.setattr(front.engine, "send", told.append)
        front.engine.load["settings"]["check_memory"] = False  # as after the first engine was ready
        front.reload._again = lambda: Settings.model_validate({**changed, "queue": 7})
        front.reload.run(front.settings)
        assert here == [("debug", True)]
        assert told == [{"type": "log", "level": "debug", "content": True}]
        first = front.engine.load["settings"]
        assert (first["log_level"], first["log_content"], first["queue"]) == ("debug", True, 7)
        assert not first["check_memory"], "what has fitted is not refused later"

        front.reload._again = lambda: Settings.model_validate({**changed, "queue": 9})
        front.reload.run(front.settings)
        assert len(told) == 1, "nothing of the logs has changed"


@pytest.mark.parametrize(("changed", "left"), [({"context": 8192}, 0), ({"slots": 2}, 1)])
def test_open_requests_end_where_the_rest_could_be_another_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], left: int
) -> None:
    monkeypatch.setattr(logs, "set_up", lambda level, content: None)
    with desk(tmp_path) as made:
        front, app = made.front, made.app()
        made.generate(app)
        front.engine.load["ran"] = "llama_cpp"
        replaced: list[dict[str, Any]] = []
        monkeypatch.setattr(front.life, "replace", lambda load, pair: replaced.append(load))
        front.reload._again = lambda: Settings.model_validate(changed)
        front.reload.run(front.settings)
        assert len(front.jobs) == left
        if not left:
            assert app.hear()["code"] == "cancelled"
        (load,) = replaced
        assert {name: load["settings"][name] for name in changed} == changed, "so another takes over"
        assert load["ran"] == ("llama_cpp" if left else None), "with auto another backend may be chosen"


def test_two_reloads_that_do_not_load_lead_back_to_what_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second may come before the first has turned out to be wrong."""
    monkeypatch.setattr(logs, "set_up", lambda level, content: None)
    with desk(tmp_path, slots=2) as made:
        front = made.front
        replaced: list[int] = []
        monkeypatch.setattr(
            front.life, "replace", lambda load, pair: replaced.append(load["settings"]["slots"])
        )

        def reload(slots: int) -> None:
            new = front.settings.model_copy(update={"slots": slots})
            front.reload._again = lambda: new
            front.reload.run(front.settings)

        reload(3)
        reload(4)
        back = front.life.fall_back
        assert back is not None
        back(OutOfMemory("too many slots"))
        assert replaced == [3, 4, 2]
        assert front.settings.slots == 2
        reload(3)
        reload(2)
        assert replaced == [3, 4, 2, 3, 2]
        assert front.life.fall_back is None, "there is nothing else that loads"


@pytest.mark.parametrize("ready", [False, True])
def test_what_had_fitted_is_not_refused_when_a_reload_leads_back_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    """Caches that are not full yet take less than is counted, and other programs may have the rest."""
    monkeypatch.setattr(logs, "set_up", lambda level, content: None)
    with desk(tmp_path, slots=2) as made:
        front = made.front
        if ready:
            front.engine.load["settings"]["check_memory"] = False  # as the lifecycle does
            front.engine.load["ran"] = "llama_cpp"
        replaced: list[dict[str, Any]] = []

        def replace(load: dict[str, Any], pair: str) -> None:
            front.engine.load = load
            replaced.append({**load["settings"], "ran": load["ran"]})

        monkeypatch.setattr(front.life, "replace", replace)
        new = front.settings.model_copy(update={"slots": 3})
        front.reload._again = lambda: new
        front.reload.run(front.settings)
        back = front.life.fall_back
        assert back is not None
        back(OutOfMemory("too many slots"))
        told = [tuple(first[name] for name in ("slots", "check_memory", "ran")) for first in replaced]
        assert told == [(3, True, None), (2, not ready, "llama_cpp" if ready else None)]
        assert front.settings.check_memory


def test_who_asked_for_the_pair_of_a_reload_hears_that_it_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that the models are in memory, once those of the old pair are."""
    monkeypatch.setattr(logs, "set_up", lambda level, content: None)
    monkeypatch.setattr(fetch, "is_here", lambda model, cache_dir: True)
    with desk(tmp_path, pair="smollm2") as made:
        front, app = made.front, made.app()
        monkeypatch.setattr(front.life, "replace", lambda load, pair: None)
        front.reload._again = lambda: front.settings.model_copy(update={"pair": "qwen2.5-coder"})
        front.reload.run(front.settings)
        front.life.state = "restarting"
        app.say("load", model="qwen2.5-coder")
        made.turn()
        front._run_timers()
        back = front.life.fall_back
        assert back is not None
        back(CorruptModel("the file is damaged"))
        error = app.hear()
        assert (error["code"], error["message"]) == ("corrupt_model", "the file is damaged")


def test_without_the_governor_nobody_is_turned_away_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "set_up", lambda level, content: None)
    with desk(tmp_path) as made:
        front = made.front
        front.governing.governor.rung = Rung.REFUSE
        with pytest.raises(Overloaded):
            front.governing.admit()
        front.reload._again = lambda: front.settings.model_copy(update={"governor": False})
        front.reload.run(front.settings)
        front.governing.admit()
        assert front.governing.report()["rung"] == Rung.NORMAL


def test_another_keep_alive_is_in_force_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "set_up", lambda level, content: None)
    with desk(tmp_path) as made:
        front = made.front
        assert front.life.lifetime.look_at() == inf
        front.reload._again = lambda: front.settings.model_copy(update={"keep_alive": 100.0})
        front.reload.run(front.settings)
        assert front.life.lifetime.look_at() < inf
