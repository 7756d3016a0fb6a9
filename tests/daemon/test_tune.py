"""Tuning the draft of a real tiny pair: what is measured, installed, loaded, listed and removed again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from draftd.daemon import budget, loader, tune, tune_candidates, tuned
from draftd.daemon.engine import Engine
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import SHIPPED
from draftd.ipc.errors import DiskFull, InvalidRequest, ModelNotFound
from draftd.models.catalog import Pair, load_catalog
from draftd.models.sampling import Sampling
from tests.daemon.tuning import TEXT, favour, models, record_source
from tests.exactness.asking import make, run
from tests.tiny import retokenize
from tests.tiny_gguf import write_gguf

MERGES = (("t", "h"), ("Ġ", "a"), ("Ġ", "t"), ("Ġ", "o"), ("r", "e"), ("n", "u"))


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
    assert loaded.whole_draft is None
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


def test_pull_goes_on_where_tuning_fails(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("."))(1 << 40, 1 << 40, 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pulled = models("pull")
    assert pulled.exit_code == 0
    assert "the draft is not tuned: the disk under" in pulled.stderr
    monkeypatch.setattr(tune_candidates, "quantize", None)  # it is known before the first is written
    with pytest.raises(DiskFull):
        models("tune")
    assert names(tiny[1]) == []


def test_pull_says_where_the_target_does_not_fit_and_loads_nothing(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure_room", lambda _: budget.Room(10**6, 0))
    monkeypatch.setattr(loader, "load_llama_cpp", None)
    pulled = models("pull")
    assert pulled.exit_code == 0
    assert "the draft is not tuned: tiny needs" in pulled.stderr
    assert tuned.find(*tiny) is None


def test_the_one_backend_that_fits_is_measured(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = replace(tiny[0], backend="auto"), tiny[1]
    small = settings.model_copy(update={"context": tune.TOKENS, "slots": 1})
    _, llama_cpp = budget.asked(pair, small, budget.Room(10**12, 0))
    monkeypatch.setattr(budget, "measure_room", lambda _: budget.Room(llama_cpp.memory, 0))
    monkeypatch.setattr(tune, "choose_backend", None)  # it would load the target in both
    favour(monkeypatch, SHIPPED)
    record = tune.tune(pair, settings, TEXT, True, lambda line: None).record
    assert record is not None
    assert record.backend == "llama_cpp"


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


def test_what_is_not_on_this_machine_cannot_be_tuned(tiny: tuple[Pair, Settings]) -> None:
    with pytest.raises(ModelNotFound, match="run `draftd models pull smollm2`"):
        tune.tune(load_catalog().pair("smollm2"), tiny[1], TEXT, True, lambda line: None)


def test_a_self_draft_that_wins_is_installed(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair, settings = tiny
    settings = settings.model_copy(update={"backend": "transformers", "dtype": "float32"})
    favour(monkeypatch, "Q4_0", "big")
    outcome = tune.tune(pair, settings, TEXT, False, lambda line: None)
    assert [each.types for each in outcome.figures if each.source == "big"] == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    loaded = loader.load(settings, lambda fraction, stage: None)
    assert loaded.info["draft"] == "big (tuned: Q4_0)"
    assert loaded.info["tokenizers"] == "the same tokenizer"
    assert loaded.drafting.model is not None
    loaded.drafting.model.close()
    loaded.target.close()
    caplog.set_level("INFO")
    other = loader.load(settings.model_copy(update={"backend": "llama_cpp"}), lambda fraction, stage: None)
    assert other.info["draft"] == "small", "there the target does not draft for itself"
    assert "the draft was tuned for transformers: `draftd models tune` may find" in caplog.text
    other.drafting.set_model(None)
    other.target.close()


def test_a_target_that_drafts_for_itself_lends_its_keys_and_answers_the_same(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pair, settings = tiny
    settings = settings.model_copy(update={"backend": "transformers", "dtype": "float32"})
    favour(monkeypatch, "Q4_0+Q8_0", "big")
    tune.tune(pair, settings, TEXT, False, lambda line: None)
    assert "tuned: target, Q4_0+Q8_0" in models("list").stdout
    loaded = loader.load(settings, lambda fraction, stage: None)
    caplog.clear()
    engine = Engine(loaded.target, loaded.drafting)
    alone = run(engine, [make(0, Sampling(0.0), "off")])
    drafted = make(1, Sampling(0.0), ("model", 6))
    assert run(engine, [drafted]) == alone
    assert drafted.tally.accepted > 0
    assert "the draft takes the target's keys and values" in caplog.text
    loaded.drafting.set_model(None)
    loaded.target.close()


def test_what_a_draft_reads_counts_and_what_it_borrows_does_not(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny[1].model_copy(update={"backend": "transformers", "dtype": "float32"})
    readings = []

    def best_length(seconds: float, survival: object, passes: object, reading: float) -> tuple[int, float]:
        readings.append(reading)
        return 1, 1.0

    monkeypatch.setattr(tune, "best_length", best_length)
    figures = tune.tune(tiny[0], settings, TEXT, False, lambda line: None).figures
    read = {(each.source, each.types): took for each, took in zip(figures, readings, strict=True)}
    assert read["big", "Q4_0+Q8_0"] == 0.0
    assert min(read["big", SHIPPED], read["small", SHIPPED]) > 0.0, "llama.cpp keeps 32 bits in another form"


def test_a_pair_without_a_draft_installs_nothing_where_nothing_pays(tiny: tuple[Pair, Settings]) -> None:
    shown = models("tune", "--pair", "alone").stdout
    assert "nothing is installed: no draft is expected to beat the target alone" in shown
    assert tuned.draft_file(load_catalog().pair("alone"), tiny[1]) is None


def test_the_target_counts_as_fast_as_it_was_beside_the_drafts(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "pass_seconds", lambda target, rows: 1.0)
    monkeypatch.setattr(tune, "token_seconds", lambda models, tokens, rounds: [10.0] + [1.0] * 3)
    shipped = tune.tune(*tiny, TEXT, True, lambda line: None).figures[0]
    assert shipped.milliseconds == 1000.0
    assert shipped.length > 1  # a tenth of a pass each, not a whole one
