"""Tuning the draft of a tiny pair: the choice, the files, the record, the command, what the daemon loads."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner, Result

from draftd.daemon import loader, tune, tune_figures, tuned
from draftd.daemon import settings as configuration
from draftd.daemon.models_cli import models_app
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import SHIPPED, Figure
from draftd.ipc.errors import DiskFull, InvalidRequest, ModelNotFound
from draftd.models.base import Rows, Span
from draftd.models.catalog import Pair, load_catalog
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.pair import By, PairReport
from draftd.models.spelling import Spelling
from draftd.models.translation import Translation
from tests.fakes import TableTarget
from tests.tiny import retokenize
from tests.tiny_gguf import write_gguf

TEXT = "def add(one, two):\n    return one + two\n\nThe sum of two numbers is a number.\n" * 3
MERGES = (("t", "h"), ("Ġ", "a"), ("Ġ", "t"), ("Ġ", "o"), ("r", "e"), ("n", "u"))
WIDTHS = {1: 0.1, 2: 0.1, 5: 0.1, 17: 0.1}  # a memory-bound target: checking is free


def figure(speedup: float, types: str = "Q4_0") -> Figure:
    return Figure(
        source="d", types=types, size=1, milliseconds=1.0, acceptance=0.5, length=1, speedup=speedup
    )


# ---- the choice


def test_the_best_length_by_hand() -> None:
    half = [0.5, 0.25, 0.125]
    length, speed = tune_figures.best_length(0.01, half, {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1})
    assert length == 2  # a third one brings 1.875 / 1.3
    assert speed == pytest.approx(1.75 / 1.2)
    length, speed = tune_figures.best_length(0.03, half, {1: 0.1, 4: 0.1})
    assert length == 1  # a second one brings 1.75 / 1.6
    assert speed == pytest.approx(1.5 / 1.3)


def test_rows_between_the_measured_widths_are_interpolated() -> None:
    length, speed = tune_figures.best_length(0.02, [1.0, 1.0], {1: 0.1, 3: 0.3})
    assert length == 1
    assert speed == pytest.approx(2 * 0.1 / 0.22)
    length, speed = tune_figures.best_length(0.001, [1.0] * 4, {1: 0.1, 3: 0.14, 5: 1.0})
    assert length == 2
    assert speed == pytest.approx(3 * 0.1 / 0.142)


def test_drafts_that_do_not_pay_are_still_told_apart() -> None:
    slow, slower = (tune_figures.best_length(seconds, [0.4, 0.2], WIDTHS) for seconds in (0.1, 0.2))
    assert (slow[0], slower[0]) == (1, 1)
    assert (slow[1], slower[1]) == pytest.approx((1.4 / 2, 1.4 / 3))


def test_drafts_survive_longer_where_agreement_comes_in_runs() -> None:
    runs = tune_figures.survival(np.array([True] * 32 + [False] * 32))
    mixed = tune_figures.survival(np.array([True, False] * 32))
    assert runs[0] == pytest.approx(32 / 49)  # of 49 starts of 16 tokens
    assert runs[15] == pytest.approx(17 / 49)
    assert mixed[0] == pytest.approx(25 / 49)
    assert mixed[1:] == [0.0] * 15


def test_the_faster_draft_wins_only_clearly() -> None:
    shipped, slower, little, clearly = (figure(speed) for speed in (2.0, 1.9, 2.05, 2.1))
    assert tune_figures.choose([shipped, slower], 0) == 0
    assert tune_figures.choose([shipped, little], 0) == 0
    assert tune_figures.choose([shipped, little, clearly], 0) == 2
    assert tune_figures.choose([figure(1.0), figure(1.0)], 0) == 0


def test_without_a_draft_of_its_own_a_pair_needs_a_gain() -> None:
    assert tune_figures.choose([figure(1.0), figure(1.02)], None) is None
    assert tune_figures.choose([figure(1.0), figure(1.5)], None) == 1
    assert tune_figures.choose([], None) is None


# ---- measuring


def test_agreement_is_counted_at_every_position() -> None:
    target, other = TableTarget(seed=0), TableTarget(seed=1)
    tokens = [index * 5 % 8 for index in range(150)]  # more than one chunk
    choices = tune_figures.first_choices(target, tokens, 8)
    assert choices.tolist() == [int(target.row(tokens[: end + 1]).argmax()) for end in range(150)]
    assert (choices == tune_figures.first_choices(other, tokens, 8)).mean() < 0.5
    assert tune_figures.first_choices(target, tokens, 3).max() < 3


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    order: list[int] = []

    class Timed(TableTarget):
        def forward(self, spans: Sequence[Span]) -> list[Rows]:
            if spans[0].rows == len(spans[0].tokens) == 1:
                order.append(self.name)
                clock[0] += self.cost * (1 + len(order) // 8)  # the machine gets slower all the time
            return super().forward(spans)

        name, cost = 0, 1.0

    monkeypatch.setattr(tune_figures, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    one, two = Timed(), Timed()
    two.name, two.cost = 1, 2.0
    first, second = tune_figures.token_seconds([one, two], list(range(8)) * 8, 4)
    assert order == [0] * 4 + [1] * 8 + [0] * 8 + [1] * 8 + [0] * 4
    assert 1.5 < second / first < 2.7


# ---- a real tiny pair


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def tiny(
    tmp_path: Path, tiny_files: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Pair, Settings]:
    """A pair in llama.cpp: an fp32 draft of the target's own weights, so every recipe agrees less."""
    for name in [name for name in os.environ if name.startswith("DRAFTD_")]:
        monkeypatch.delenv(name)
    shutil.copy(tiny_files / "same.gguf", tmp_path / "draft.gguf")
    (tmp_path / "catalog.toml").write_text(
        f'[models.big]\npath = "{tiny_files / "same.gguf"}"\n[models.small]\npath = "{tmp_path}/draft.gguf"\n'
        '[pairs.tiny]\ntarget = "big"\ndraft = "small"\nbackend = "llama_cpp"\n'
        '[pairs.alone]\ntarget = "big"\nbackend = "llama_cpp"\n'
    )
    given = {"catalog": "catalog.toml", "config": "none.toml", "cache_dir": "cache"}
    for name, value in given.items():
        monkeypatch.setenv(f"DRAFTD_{name.upper()}", str(tmp_path / value))
    monkeypatch.setenv("DRAFTD_STATE_DIR", str(state))
    monkeypatch.setenv("DRAFTD_THREADS", "1")
    monkeypatch.setenv("DRAFTD_PAIR", "tiny")
    monkeypatch.setenv("COLUMNS", "200")
    return load_catalog().pair("tiny"), configuration.load()


def favour(monkeypatch: pytest.MonkeyPatch, types: str) -> None:
    """Have one form of the draft win, whatever this machine measures."""

    def choose(figures: list[Figure], shipped: int | None) -> int:
        return next(index for index, each in enumerate(figures) if each.types == types)

    monkeypatch.setattr(tune, "choose", choose)


def models(*arguments: str) -> Result:
    result = CliRunner().invoke(models_app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def names(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.cache_dir / "tuned").iterdir() if path.suffix != ".lock")


def test_the_winner_is_installed_loaded_listed_and_removed(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    favour(monkeypatch, "Q8_0")
    shown = models("tune", "--text", str(Path(__file__)))
    assert shown.exit_code == 0
    assert shown.stdout.split()[0] == "small"
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if " kB " in line}
    assert list(lines) == ["as", "Q4_0", "Q4_0+Q8_0", "Q5_0", "Q8_0"]
    assert lines["Q8_0"].rstrip().endswith("chosen")
    assert "not tried: small as Q4_K+Q6_K: rows of 64 do not divide" in shown.stdout
    assert "not tried: no self-draft: the target runs from the same file" in shown.stdout
    record = tuned.find(pair, settings)
    assert record is not None
    assert names(settings) == ["tiny.json", record.file]
    accepted = {each.types: each.acceptance for each in record.figures}
    assert accepted[SHIPPED] > 0.98  # the target may prefer one of its padding ids, which no draft proposes
    assert accepted[SHIPPED] > accepted["Q8_0"] > accepted["Q4_0"]

    loaded = loader.load(settings, lambda fraction, stage: None)
    assert loaded.info["draft"] == "small (tuned: Q8_0)"
    assert loaded.drafting.model is not None
    loaded.drafting.model.close()
    loaded.target.close()
    assert "tuned: Q8_0" in models("list").stdout

    favour(monkeypatch, "Q4_0")
    models("tune", "--quick")
    assert [name.split("-")[0] for name in names(settings)] == ["tiny.json", "tiny@Q4_0"]
    assert "tuned: Q4_0" in models("list").stdout
    undone = models("tune", "--undo").stdout
    assert undone.count("removed ") == 2
    assert names(settings) == []
    assert models("tune", "--undo").stdout == "the draft of tiny is not tuned\n"
    assert tuned.draft_file(pair, settings) == (pair.draft.path if pair.draft else None, "small")


def test_a_draft_that_is_best_as_it_came_leaves_no_file(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    favour(monkeypatch, SHIPPED)
    models("tune", "--quick")
    assert names(settings) == ["tiny.json"]
    record = tuned.find(pair, settings)
    assert record is not None
    assert record.file is None
    assert tuned.draft_file(pair, settings) == (record_source(pair), "small")
    assert "tuned" not in models("list").stdout


def record_source(pair: Pair) -> Path:
    assert pair.draft is not None
    assert pair.draft.path is not None
    return pair.draft.path


def test_pull_tunes_once_and_remove_removes_it(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = tiny
    assert "tuning" not in models("pull", "--no-tune").output
    assert not tuned.files("tiny", settings)
    favour(monkeypatch, "Q4_0")
    pulled = models("pull")
    assert pulled.exit_code == 0
    assert "tuning the draft to this machine" in pulled.stderr
    assert "draft: small, Q4_0: " in pulled.stderr
    again = models("pull").stderr
    assert "tuning" not in again
    assert "draft: small, Q4_0: " in again
    removed = models("remove", "tiny", "--yes").stdout
    assert "tiny@Q4_0" in removed
    assert not tuned.files("tiny", settings)


def test_other_threads_are_another_machine(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    favour(monkeypatch, "Q4_0")
    tune.tune(pair, settings, TEXT, True, lambda line: None)
    assert tuned.find(pair, settings) is not None
    assert tuned.find(pair, settings.model_copy(update={"threads": 2})) is None


def test_pull_goes_on_where_tuning_fails(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("."))(1 << 40, 1 << 40, 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pulled = models("pull")
    assert pulled.exit_code == 0
    assert "the draft is not tuned: the disk under" in pulled.stderr
    monkeypatch.setattr(tune, "quantize", None)  # it is known before the first is written
    with pytest.raises(DiskFull):
        models("tune")
    assert names(tiny[1]) == []


@pytest.mark.parametrize(
    ("damage", "warning"),
    [
        ("gone", "its file tiny@Q4_0-.* is gone"),
        ("bytes", "tiny@Q4_0-.* is damaged"),
        ("source", "draft.gguf is not the file that it was made from"),
        ("machine", "another machine, for other threads or by"),
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


def test_a_text_that_is_too_short_and_one_that_is_not_there(tiny: tuple[Pair, Settings]) -> None:
    pair, settings = tiny
    with pytest.raises(InvalidRequest, match="the calibration text has 5 tokens: give at least 32"):
        tune.tune(pair, settings, "hello", True, lambda line: None)
    with pytest.raises(InvalidRequest, match="cannot read"):
        models("tune", "--text", "/nowhere/at-all.txt")
    assert names(settings) == []


@pytest.mark.parametrize("merges", [(), MERGES])
def test_a_draft_with_another_tokenizer_is_measured_too(
    tiny: tuple[Pair, Settings], tiny_files: Path, tmp_path: Path, merges: Sequence[tuple[str, str]]
) -> None:
    """The target's own weights: all agree, but where a shared token is not what the draft has learnt."""
    pair, settings = tiny
    write_gguf(retokenize(tiny_files / "target", tmp_path / "other", merges), record_source(pair))
    shipped = tune.tune(pair, settings, TEXT, True, lambda line: None).figures[0]
    assert shipped.acceptance > 0.95


def test_agreement_by_text_is_one_text_beginning_the_other(tiny_files: Path, tmp_path: Path) -> None:
    same = write_gguf(tiny_files / "target", tmp_path / "same.gguf")
    words = [Spelling(GGUFTokenizer(same)) for _ in range(2)]
    translation = Translation(words[0], words[1], 272, 272)
    model = LlamaTarget.load(same, slots=1, context=64, threads=1)
    tokens = list(TEXT.encode()[:100])
    choices = tune_figures.first_choices(model, tokens[:64], 259)
    choices = np.concatenate([choices, choices[:36]])
    text = tune_figures.first_choices(model, tokens[:64], 272) < 256  # others have no text to compare
    ways: tuple[By, ...] = ("tokens", "text")
    for by in ways:
        report = PairReport(by, 0, "", translation=translation)
        agreed = tune_figures.agreement(model, tokens, choices, report)
        assert len(agreed) == 64, "as many as fit the draft"
        assert agreed[text].all()
        assert not tune_figures.agreement(model, tokens, (choices + 1) % 256, report).any()
    model.close()


def test_what_is_not_on_this_machine_cannot_be_tuned(tiny: tuple[Pair, Settings]) -> None:
    with pytest.raises(ModelNotFound, match="run `draftd models pull smollm2`"):
        tune.tune(load_catalog().pair("smollm2"), tiny[1], TEXT, True, lambda line: None)


def test_the_target_drafts_for_itself_where_it_runs_wider(
    tiny: tuple[Pair, Settings], tmp_path: Path
) -> None:
    pair, settings = tiny
    full, _ = tune.plan(pair, settings, "transformers", False, tmp_path)
    itself = [candidate.types for candidate in full if candidate.source == pair.target]
    assert itself == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    assert full[0].source == pair.draft
    quick, _ = tune.plan(pair, settings, "transformers", True, tmp_path)
    assert {candidate.source.name for candidate in quick} == {"small"}
    alone = load_catalog().pair("alone")
    assert [each.types for each in tune.plan(alone, settings, "transformers", True, tmp_path)[0]] == itself
    assert tune.plan(alone, settings, "llama_cpp", False, tmp_path)[0] == []
    twice = Pair("tiny", pair.target, pair.target, "auto", "")
    candidates, skipped = tune.plan(twice, settings, "transformers", False, tmp_path)
    assert len(candidates) == 5
    assert "made from the target's file already" in skipped[0]


def test_a_self_draft_that_wins_is_installed(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    settings = settings.model_copy(update={"backend": "transformers", "dtype": "float32"})

    def choose(figures: list[Figure], shipped: int | None) -> int:
        return next(
            index for index, each in enumerate(figures) if (each.source, each.types) == ("big", "Q4_0")
        )

    monkeypatch.setattr(tune, "choose", choose)
    outcome = tune.tune(pair, settings, TEXT, False, lambda line: None)
    assert [each.types for each in outcome.figures if each.source == "big"] == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    loaded = loader.load(settings, lambda fraction, stage: None)
    assert loaded.info["draft"] == "big (tuned: Q4_0)"
    assert loaded.info["tokenizers"] == "the same tokenizer"
    assert loaded.drafting.model is not None
    loaded.drafting.model.close()
    loaded.target.close()


def test_a_pair_without_a_draft_installs_nothing_where_nothing_pays(tiny: tuple[Pair, Settings]) -> None:
    shown = models("tune", "--pair", "alone").stdout
    assert "nothing is installed: no draft is expected to beat the target alone" in shown
    assert tuned.draft_file(load_catalog().pair("alone"), tiny[1]) is None


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


def test_the_target_counts_as_fast_as_it_was_beside_the_drafts(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "pass_seconds", lambda target, rows: 1.0)
    monkeypatch.setattr(tune, "token_seconds", lambda models, tokens, rounds: [10.0] + [1.0] * 3)
    shipped = tune.tune(*tiny, TEXT, True, lambda line: None).figures[0]
    assert shipped.milliseconds == 1000.0
    assert shipped.length > 1  # a tenth of a pass each, not a whole one


def test_what_does_not_fit_the_memory_is_left_out(
    tiny: tuple[Pair, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    candidates, _ = tune.plan(pair, settings, "llama_cpp", True, tmp_path)
    same = [tune.Candidate(each.source, each.recipe, record_source(pair)) for each in candidates]
    size = record_source(pair).stat().st_size
    for room, kept in ((10 * size, 3), (4 * size, 2), (0, 1)):
        memory = SimpleNamespace(available=room)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        fit, crowded = tune._that_fit(same)
        assert len(fit) == kept
        assert len(crowded) == 3 - kept
    assert crowded[0] == "small as Q4_0: too little memory to measure it"


def test_candidates_of_a_killed_tuning_are_removed(tiny: tuple[Pair, Settings]) -> None:
    _, settings = tiny
    left = settings.cache_dir / "tuned" / ".candidates-4194999"  # beyond the largest process id
    left.mkdir(parents=True)
    (left / "x.gguf").write_text("half")
    models("tune", "--pair", "alone")
    assert not left.exists()


def test_the_text_that_comes_along_is_long_enough() -> None:
    text = tuned.sample_text()
    assert len(text.split()) > 300
    assert "def count_words" in text
    assert "| machine |" in text
