from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.bench.conftest import nobody

Program = Callable[[str], ModuleType]


def test_a_recording_comes_back_as_it_was_kept(program: Program, answer: Any, tmp_path: Path) -> None:
    recording = program("recording")
    recording.save(tmp_path / "it", "this", "these models", [answer])
    models, (kept,) = recording.load(tmp_path / "it", "this")
    assert models == "these models"
    assert (kept.category, kept.prompt, kept.drafted) == ("a", [1, 2, 3], answer.drafted)
    assert kept.tokens == [4, 5, 6]
    with pytest.raises(SystemExit, match="a recording of this, not of that"):
        recording.load(tmp_path / "it", "that")


def test_shares_of_the_best_fixed_by_hand(program: Program) -> None:
    simulated = program("simulated_gpu")
    speeds = {
        "auto": {"a": 1.8, "b": 0.9},
        "model:8": {"a": 2.0, "b": 0.5},
        "suffix:8": {"a": 1.0, "b": 0.8},
    }
    runs = [{"machine": "here", "policy": name, "by_category": each} for name, each in speeds.items()]
    document = {"runs": runs}
    assert simulated.shares(document, "here") == {"a": (pytest.approx(0.9), "model:8"), "b": (0.9, "off")}
    assert simulated.means(document, "here")["model:8"] == pytest.approx(1.0)
    assert simulated.hindsight(document, "here") == pytest.approx(2.0**0.5)


@pytest.mark.usefixtures("tiny_pair")
def test_a_recording_of_a_real_pair_is_replayed(
    program: Program,
    run_main: Callable[..., ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"question_id": each, "category": each, "turns": [f"say {each}"]} for each in ("a", "b")]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    out, kept = tmp_path / "out.json", tmp_path / "kept.npz"
    given = ["--pair", "tiny", "--prompts", prompts, "--max-tokens", "20", "--places", "1", "8"]
    simulated = run_main("simulated_gpu", *given, "--recording", kept, "--json", out)
    assert "recorded b: " in capsys.readouterr().out
    document = json.loads(out.read_text("utf-8"))
    assert document["models"] == "target target, draft draft"
    names = [place["name"] for place in document["inputs"]]
    assert len(names) == 2
    for run in document["runs"]:
        assert run["machine"] in names
        assert set(run["by_category"]) == {"a", "b"}
        assert all(speed > 0 for speed in run["by_category"].values())
    text = "\n".join(simulated.lines(document))
    assert "**SIMULATED.**" in text
    for place in document["inputs"]:
        assert f"| {place['basis']}: {place['source']} |" in text
    older = document | {"inputs": [place | {"basis": "measured"} for place in document["inputs"]]}
    published = f"| published: {document['inputs'][0]['source']} |"
    assert published in "\n".join(simulated.lines(older)), "an older file calls it measured"
    # The file has all that a fixed length drafts: no model is needed any more.
    title = "tiny, prompts.jsonl, 1 x 20 tokens, confidences by group"
    recording = program("recording")
    models, answers = recording.load(kept, title)
    seconds = simulated.simulate(program("places").PLACES[0], ("model", 4), answers, nobody)
    assert len(seconds) == 2
    # An answer of one token has nothing to time, and is in no table.
    short = replace(answers[0], category="short", rows=answers[0].rows[:1], drafted={})
    recording.save(kept, title, models, [*answers, short])
    run_main("simulated_gpu", *given, "--places", "1", "--recording", kept, "--json", out)
    assert set(json.loads(out.read_text("utf-8"))["runs"][0]["by_category"]) == {"a", "b"}
    recording.save(kept, title, models, [short])
    with pytest.raises(SystemExit, match="no answer has a second token"):
        run_main("simulated_gpu", *given, "--recording", kept, "--json", out)
