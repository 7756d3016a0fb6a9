"""A tuned draft's record and file: when they hold, and what is said where they no longer do."""

from __future__ import annotations

import errno
import json
import logging
import re
import threading
from pathlib import Path

import pytest
import typer

from draftd.daemon import models_cli, tune, tune_cli, tuned
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import SHIPPED, Figure, Record
from draftd.ipc.errors import DiskFull
from draftd.models.base import Span
from draftd.models.catalog import Pair, load_catalog
from draftd.models.llama_cpp import LlamaTarget
from tests.daemon.tuning import TEXT, favour, record_source


def test_other_threads_and_layers_on_a_gpu_are_another_machine(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    favour(monkeypatch, "Q4_0")
    tune.tune(pair, settings, TEXT, True, lambda line: None)
    assert tuned.find(pair, settings) is not None
    for change in ({"threads": 2}, {"gpu_layers": -1}):
        assert tuned.find(pair, settings.model_copy(update=change)) is None


def test_undoing_waits_for_who_tunes(tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    pair, settings = tiny
    path = tuned.record_path(pair.name, settings)
    waiting = threading.Event()
    monkeypatch.setattr(typer, "echo", lambda line, err=False: waiting.set() if err else None)
    undoing = threading.Thread(target=lambda: tune_cli.tune(undo=True))
    with tuned.alone(pair.name, settings, lambda line: None):
        path.touch()
        undoing.start()
        assert waiting.wait(30)
        assert path.exists()
    undoing.join(30)
    assert not path.exists()


def test_removing_a_pair_waits_for_who_tunes_it(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    path = tuned.record_path(pair.name, settings)
    waiting = threading.Event()
    monkeypatch.setattr(typer, "echo", lambda line, err=False: waiting.set() if err else None)
    removing = threading.Thread(target=lambda: models_cli.remove("tiny", yes=True))
    with tuned.alone(pair.name, settings, lambda line: None):
        removing.start()
        assert waiting.wait(30)
        path.touch()  # what the tuning installs
    removing.join(30)
    assert not path.exists()


@pytest.mark.parametrize(
    ("damage", "warning"),
    [
        ("gone", "its file tiny@Q4_0-.* is gone"),
        ("bytes", "tiny@Q4_0-.* is damaged"),
        ("source", "draft.gguf is not the file that it was made from"),
        ("machine", "another machine, for other threads or gpu_layers"),
        ("version", "damaged or of another version"),
        ("json", "damaged or of another version"),
        ("chosen", "it is damaged"),
        ("path", "damaged or of another version"),
        ("pair", "small is no longer a model of the pair"),
    ],
)
def test_a_record_that_no_longer_holds_is_ignored_with_a_warning(
    tiny: tuple[Pair, Settings],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
    warning: str,
) -> None:
    pair, settings = tiny
    favour(monkeypatch, "Q4_0")
    monkeypatch.setattr(tune, "token_seconds", lambda models, tokens, rounds: [0.01] * len(models))
    made = tune.tune(pair, settings, TEXT, True, lambda line: None).record
    assert made is not None
    assert made.file is not None
    path = tuned.record_path("tiny", settings)
    kept = json.loads(path.read_text())
    if damage == "gone":
        (path.parent / made.file).unlink()
    elif damage == "bytes":
        (path.parent / made.file).write_bytes(b"GGUF")
    elif damage == "source":
        record_source(pair).write_bytes(record_source(pair).read_bytes() + b"x")
    elif damage == "json":
        path.write_text(path.read_text()[:40])
    elif damage == "pair":
        alone = load_catalog().pair("alone")
        pair = Pair("tiny", alone.target, alone.target, "auto", "")
    else:
        changed = {"machine": "a toaster", "version": 2, "chosen": 99}.get(damage)
        path.write_text(json.dumps(kept | ({"file": "../x"} if damage == "path" else {damage: changed})))
    with caplog.at_level(logging.WARNING, "draftd.engine"):
        found = tuned.draft_file(pair, settings)
    assert found is not None
    assert pair.draft is not None
    assert found[1] == pair.draft.name
    assert found[0].name in ("draft.gguf", "same.gguf")
    assert caplog.messages[-1].endswith("`draftd models tune --pair tiny` tunes the draft again")
    assert re.search(warning, caplog.text)


def test_the_tuned_file_answers_as_a_model(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    favour(monkeypatch, "Q4_0+Q8_0")
    tune.tune(pair, settings, TEXT, True, lambda line: None)
    found = tuned.draft_file(pair, settings)
    assert found is not None
    model = LlamaTarget.load(found[0], slots=1, context=64, threads=1)
    assert model.forward([Span(0, 0, [65, 66, 67], 1)])[0].shape == (1, 272)
    model.close()


def test_a_record_that_the_disk_has_no_room_for_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "full")

    figure = Figure(
        source="s", types=SHIPPED, size=1, milliseconds=1.0, acceptance=0.5, length=1, speedup=1.0
    )
    record = Record(
        pair="p",
        machine="m",
        backend="llama_cpp",
        chosen=0,
        source_sha256="0",
        file=None,
        file_sha256=None,
        figures=[figure],
    )
    monkeypatch.setattr(tuned, "replace_text", full)
    with pytest.raises(DiskFull):
        tuned.write(record, Settings.model_validate({"cache_dir": tmp_path}))


def test_the_text_that_comes_along_is_long_enough() -> None:
    text = tuned.sample_text()
    assert len(text.split()) > 300
    assert "def count_words" in text
    assert "| machine |" in text
