"""The file of what was learnt: kept whole or ignored with a warning."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from draftd.daemon.controller import Controller
from draftd.daemon.drafting import Drafting
from draftd.daemon.learnt import VERSION, load, save
from draftd.daemon.settings import Settings
from draftd.daemon.sources import make_drafting
from tests.daemon.simulator import MACHINES, Weather, run, texts
from tests.fakes import TableTarget


def test_comes_back_as_it_was_and_leaves_no_other_file(tmp_path: Path) -> None:
    controller = Controller()
    run(controller, MACHINES["llama.cpp, tuned draft"], texts("code", 1), Weather(Random(1)))
    path = tmp_path / "state" / "pair.json"
    save(path, Controller().learnt)
    save(path, controller.learnt)
    assert load(path) == controller.learnt
    assert [entry.name for entry in path.parent.iterdir()] == ["pair.json"]


def test_no_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(tmp_path / "none.json") is None
    assert not caplog.records


def cut(text: str) -> str:
    return text[:100]


def wrong_version(text: str) -> str:
    return text.replace(f'"version":{VERSION}', '"version":1')


def short_table(text: str) -> str:
    state = json.loads(text)
    state["target"]["shape"].pop()
    return json.dumps(state)


def negative(text: str) -> str:
    state = json.loads(text)
    state["calibrations"]["model/greedy"]["tried"][0] = -1.0
    return json.dumps(state)


def too_many(text: str) -> str:
    state = json.loads(text)
    state["calibrations"]["model/greedy"]["accepted"][0] = 5.0
    return json.dumps(state)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:100],
        lambda text: "",
        lambda text: "[]",
        wrong_version,
        short_table,
        negative,
        too_many,
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    spoil: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pair.json"
    save(path, Controller().learnt)
    assert callable(spoil)
    path.write_text(spoil(path.read_text()))
    with caplog.at_level(logging.WARNING):
        assert load(path) is None
    assert "pair.json" in caplog.text


def test_a_place_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    save(tmp_path / "file" / "pair.json", Controller().learnt)
    assert "cannot keep" in caplog.text
    (tmp_path / "folder").mkdir()
    save(tmp_path / "folder", Controller().learnt)
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder"}


def test_a_start_behind_a_clear_measures_as_the_first_one_did(tmp_path: Path) -> None:
    """A daemon that was told to forget writes what it knows as it ends, be that nothing."""
    settings = Settings.model_validate({"state_dir": tmp_path})
    tokenizer: Any = SimpleNamespace(size=64)

    def start() -> tuple[Drafting, Path]:
        return make_drafting(None, tokenizer, TableTarget(vocab=64), settings, {"target": "a model"})

    drafting, path = start()
    drafting.unlearn()
    save(path, drafting.controller.learnt)
    again, _ = start()
    assert again.controller.target.known(1)


def test_what_was_learnt_elsewhere_is_not_taken_for_what_holds_on_a_gpu(tmp_path: Path) -> None:
    tokenizer: Any = SimpleNamespace(size=64)

    def path(**places: Any) -> Path:
        settings = Settings.model_validate({"state_dir": tmp_path, **places})
        return make_drafting(None, tokenizer, TableTarget(vocab=64), settings, {"target": "a model"})[1]

    assert path() == path()
    assert len({path(), path(gpu_layers=-1), path(device="cuda:1"), path(device_map="auto")}) == 4
