"""A target that drafts for itself without the tokens of scripts that nobody here writes in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from draftd.daemon import loader, tune, tune_candidates, tuned
from draftd.daemon.control import Mode
from draftd.daemon.engine import Engine
from draftd.daemon.retreat import Retreat
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import SHIPPED
from draftd.drafts.by_tokens import TokenDraft
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.models.catalog import Pair, load_catalog
from draftd.models.sampling import Sampling
from tests.daemon.tuning import TEXT, favour, models
from tests.exactness.asking import make, run
from tests.tiny import cyrillic, retokenize, write_tiny
from tests.tiny_gguf import write_gguf

TRIMMED = "Q4_0+Q8_0, 288 tokens"


def refused(*_: object) -> None:
    raise OSError(errno.EACCES, "Permission denied")


def tune_source(pair: Pair) -> Path:
    assert pair.target.path is not None
    return pair.target.path


RUSSIAN = "Дарья и Пётр идут домой.\n" * 6


@pytest.fixture(scope="module")
def wide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with tokens of Cyrillic letters."""
    root = tmp_path_factory.mktemp("wide")
    plain = write_tiny(root / "plain", vocab=352, context=8192)
    return write_gguf(retokenize(plain, root / "wide", cyrillic()), root / "wide.gguf")


@pytest.fixture
def wide(
    tiny: tuple[Pair, Settings], wide_file: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Pair, Settings]:
    """A pair without a draft, whose target runs in transformers, on a system that is set to English."""
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.setenv("DRAFTD_PAIR", "wide")
    Path(os.environ["DRAFTD_CATALOG"]).write_text(
        f'[models.big]\npath = "{wide_file}"\n[pairs.wide]\ntarget = "big"\nbackend = "transformers"\n'
    )
    given = {"pair": "wide", "backend": "transformers", "dtype": "float32"}
    return load_catalog().pair("wide"), tiny[1].model_copy(update=given)


def types(pair: Pair, settings: Settings, tmp_path: Path, used: set[str]) -> list[str]:
    found, _ = tune_candidates.plan(pair, settings, "transformers", False, tmp_path, used)
    return [candidate.types for candidate in found]


def test_what_the_target_lends_to_is_trimmed_unless_its_scripts_are_used(
    wide: tuple[Pair, Settings], tmp_path: Path
) -> None:
    small = "288 tokens"
    assert types(*wide, tmp_path, set()) == [SHIPPED, small, "Q4_0, 288 tokens", TRIMMED]
    assert types(*wide, tmp_path, {"Cyrillic"}) == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    target = wide[0].target
    own = Pair("wide", target, target, "auto", "")
    assert small in types(own, wide[1], tmp_path, set()), "a draft that is the target's file"
    found, _ = tune_candidates.plan(own, wide[1], "llama_cpp", False, tmp_path)
    assert not any(candidate.trimmed for candidate in found), "there nobody lends to it"


def test_it_is_made_installed_and_answers_the_same(
    wide: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair, settings = wide
    favour(monkeypatch, TRIMMED, "big")
    for name in ("BACKEND", "DTYPE"):
        monkeypatch.setenv(f"DRAFTD_{name}", getattr(settings, name.lower()))
    shown = models("tune", "--pair", "wide")
    assert "it has no tokens of Cyrillic: for answers in one of these tune with --text FILE" in shown.stdout
    assert "big 288 tokens: the target's keys are not this draft's" in shown.stderr, "it keeps 32 bits"
    record = tuned.find(pair, settings)
    assert record is not None
    assert record.file is not None
    assert record.file.startswith("wide@Q4_0+Q8_0-288-")
    assert [each.types for each in record.figures] == [SHIPPED, "Q4_0, 288 tokens", TRIMMED]
    assert 0.1 < record.figures[-1].acceptance < record.figures[0].acceptance

    loaded = loader.load(settings, lambda fraction, stage: None)
    assert loaded.info["draft"] == f"big (tuned: {TRIMMED})"
    assert (
        loaded.info["tokenizers"] == "the same tokenizer, less 64 tokens of scripts that were not in use here"
    )
    assert isinstance(loaded.drafting.model, TokenDraft)
    assert loaded.drafting.model.same_model
    assert loaded.whole_draft is not None
    engine = Engine(loaded.target, loaded.drafting)
    caplog.set_level("INFO")
    russian = loaded.tokenizer.encode(f"The answer.\n{RUSSIAN}It is ")
    assert max(russian) > 288
    accepted, key = 0, 0
    for prompt in (loaded.tokenizer.encode("The answer is "), russian):
        for sampling in (Sampling(0.0), Sampling(0.8, seed=7)):
            modes: list[Mode] = ["off", ("model", 6), "auto"]
            asked = [make(key + index, sampling, mode, prompt) for index, mode in enumerate(modes)]
            key += len(modes)
            alone, *drafted = [run(engine, [each])[0] for each in asked]
            assert drafted == [alone, alone]
            assert asked[1].tally.accepted > 0
            accepted += asked[1].tally.accepted
    assert "the draft takes the target's keys and values" in caplog.text

    retreat = Retreat(loaded, engine)
    for key in range(100, 200):  # these weights say anything, and so much that it lacks
        if retreat.incomplete:
            break
        run(engine, [make(key, Sampling(0.8, seed=key), "auto", russian)])
    assert retreat.incomplete
    trimmed = retreat.loaded.drafting.model
    with monkeypatch.context() as broken:
        broken.setattr(tuned, "replace_text", refused)
        retreat.complete()
    assert "the draft stays as it is: cannot write" in caplog.text
    assert isinstance(retreat.loaded.drafting.model, TokenDraft)
    assert retreat.loaded.drafting.model is not trimmed, "that one was closed"

    retreat = Retreat(loaded, engine)
    retreat.complete()
    assert isinstance(loaded.drafting.model, LlamaDraft), "all tokens"
    now = tuned.find(pair, settings)
    assert now is not None
    assert now.figure.types == SHIPPED
    assert tuned.draft_file(pair, settings) == (tune_source(pair), "big"), "after the next start, too"
    assert [path.suffix for path in tuned.files("wide", settings)] == [".json"]
    assert run(engine, [make(200, Sampling(0.8, seed=7), ("model", 6), russian)]) == [alone]
    loaded.drafting.set_model(None)
    loaded.target.close()


def test_a_text_in_a_script_keeps_its_tokens(
    wide: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a system that is set to a language that is written in it."""
    found = tune.tune(*wide, TEXT + RUSSIAN, True, lambda line: None)
    assert [each.types for each in found.figures] == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    monkeypatch.setenv("LANG", "uk_UA.UTF-8")
    found = tune.tune(*wide, TEXT, True, lambda line: None)
    assert [each.types for each in found.figures] == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    assert found.missing == ()
