"""The candidates of a tuning: which there are, which fit the memory, and what a killed one left."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftd.daemon import readings, tune_candidates
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import SHIPPED
from draftd.models.catalog import Pair, load_catalog
from tests.daemon.tuning import models, record_source


def test_the_target_drafts_for_itself_where_it_runs_wider(
    tiny: tuple[Pair, Settings], tmp_path: Path
) -> None:
    pair, settings = tiny
    full, _ = tune_candidates.plan(pair, settings, "transformers", False, tmp_path)
    itself = [candidate.types for candidate in full if candidate.source == pair.target]
    assert itself == [SHIPPED, "Q4_0", "Q4_0+Q8_0"]
    assert full[0].source == pair.draft
    quick, _ = tune_candidates.plan(pair, settings, "transformers", True, tmp_path)
    assert [candidate.types for candidate in quick if candidate.source == pair.target] == [SHIPPED]
    assert len(quick) == 4
    alone = load_catalog().pair("alone")
    assert [
        each.types for each in tune_candidates.plan(alone, settings, "transformers", True, tmp_path)[0]
    ] == itself
    assert tune_candidates.plan(alone, settings, "llama_cpp", False, tmp_path)[0] == []
    twice = Pair("tiny", pair.target, pair.target, "auto", "")
    candidates, skipped = tune_candidates.plan(twice, settings, "transformers", False, tmp_path)
    assert len(candidates) == 5
    assert "made from the target's file already" in skipped[0]


def test_what_does_not_fit_the_memory_is_left_out(
    tiny: tuple[Pair, Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, settings = tiny
    candidates, _ = tune_candidates.plan(pair, settings, "llama_cpp", True, tmp_path)
    same = [tune_candidates.Candidate(each.source, each.recipe, record_source(pair)) for each in candidates]
    size = record_source(pair).stat().st_size
    for room, kept in ((10 * size, 3), (4 * size, 2), (0, 1)):
        # as a control group leaves, however much the machine has
        monkeypatch.setattr(readings, "memory_room", lambda room=room: (room, 20 * size))
        fit, crowded = tune_candidates.that_fit(same)
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
