from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from draftd.daemon import drafting, engine
from draftd.drafts.base import Context, Draft, Proposal
from draftd.models.base import Span

Program = Callable[[str], ModuleType]


@pytest.fixture
def answer(program: Program) -> Any:
    """A prompt of three tokens, an answer of 4, 5, 6, and what the draft chose behind some texts."""
    rows = np.zeros((3, 9), np.float32)
    rows[[0, 1, 2], [4, 5, 6]] = 1.0
    made: Any = program("recording").Answer("a", [1, 2, 3], rows)
    made.drafted = {((), (4,)): (5, 0.9), ((), (4, 5)): (7, 0.8), ((), (4, 5, 7)): (8, 0.7)}
    return made


@pytest.fixture
def place(program: Program) -> Any:
    times = {"pass_ms": 1e6, "row_ms": 1e4, "draft_ms": 1e5, "read_ms": 1e4}  # no hiccup here is as long
    return replace(program("places").PLACES[0], name="here", **times)


def nobody() -> Draft:
    raise AssertionError("not recorded")


def context(tokens: list[int], limit: int) -> Context:
    return Context(0, tokens, limit, lambda row, position: (0, 0.0), lambda confidences: True)


def test_a_replayed_pass_gives_the_recorded_rows_and_takes_the_places_time(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    target = replay.Replay(answer, clock, place)
    began = clock.offset
    (row,) = target.forward([Span(0, 0, [1, 2, 3], 1)])
    assert row.argmax(axis=1).tolist() == [4]
    assert clock.offset - began == pytest.approx(1020, abs=5)  # two rows beyond the first
    (rows,) = target.forward([Span(0, 3, [4, 5, 0], 3)])
    assert rows[:2].argmax(axis=1).tolist() == [5, 6], "the third is behind the recorded end"


def test_a_replayed_draft_chooses_as_recorded_and_takes_the_places_time(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    draft = replay.ReplayedDraft(answer, nobody, clock, place)
    (proposal,) = draft.propose([context([1, 2, 3, 4], 2)])
    assert (proposal.tokens, proposal.confidence) == ([5, 7], [0.9, 0.8])
    assert clock.offset == pytest.approx(230, abs=5)  # three tokens more were read
    assert draft.unseen(0, [1, 2, 3, 4, 5, 6]) == 1, "what was drafted last has not been read"
    before = clock.offset
    (proposal,) = draft.propose([context([1, 2, 3, 4, 5], 1)])
    assert proposal.tokens == [7]
    assert clock.offset - before == pytest.approx(100, abs=5)
    with pytest.raises(AssertionError, match="not recorded"):
        draft.propose([context([1, 2, 3, 4, 6], 1)])


def test_a_replayed_draft_that_passes_over_a_part_reads_and_knows_the_rest(
    program: Program, answer: Any, place: Any
) -> None:
    replay = program("replay")
    clock = replay.Clock()
    asked: list[list[int]] = []

    class Real:
        def propose(self, contexts: list[Context]) -> list[Proposal]:
            asked.append(list(contexts[0].tokens))
            return [Proposal([8], [0.5])]

    draft = replay.ReplayedDraft(answer, Real, clock, place)
    (proposal,) = draft.propose([replace(context([1, 2, 3, 4], 2), reading=2)])
    assert proposal.tokens == [8, 8]
    assert asked == [[3, 4], [3, 4, 8]]
    assert clock.offset == pytest.approx(210, abs=5)  # of three tokens more it read one
    draft.propose([context([1, 2, 3, 4, 5], 1)])
    assert asked[-1] == [3, 4, 5]
    assert set(answer.drafted) >= {((0, 2), (4,)), ((), (4,)), ((0, 2), (4, 5))}
    draft.forget(0)
    (proposal,) = draft.propose([context([1, 2, 3, 4, 5], 1)])
    assert proposal.tokens == [7], "all of it is read again"


def test_the_engine_reads_the_clock_only_meanwhile(program: Program) -> None:
    replay = program("replay")
    clock = replay.Clock()
    clock.set(1e9)
    with replay.told_by(clock):
        assert vars(engine)["time"].perf_counter() >= 1e9
        assert vars(drafting)["time"].perf_counter() >= 1e9
    assert vars(engine)["time"].perf_counter() < 1e9
    assert vars(drafting)["time"].perf_counter() < 1e9


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
    run_main: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        assert place["source"] in text
    # The file has all that a fixed length drafts: no model is needed any more.
    title = "tiny, prompts.jsonl, 1 x 20 tokens, confidences by group"
    models, answers = simulated.recording.load(kept, title)
    seconds = simulated.simulate(simulated.PLACES[0], ("model", 4), answers, nobody)
    assert len(seconds) == 2
    # An answer of one token has nothing to time, and is in no table.
    short = replace(answers[0], category="short", rows=answers[0].rows[:1], drafted={})
    simulated.recording.save(kept, title, models, [*answers, short])
    run_main("simulated_gpu", *given, "--places", "1", "--recording", kept, "--json", out)
    assert set(json.loads(out.read_text("utf-8"))["runs"][0]["by_category"]) == {"a", "b"}
    simulated.recording.save(kept, title, models, [short])
    with pytest.raises(SystemExit, match="no answer has a second token"):
        run_main("simulated_gpu", *given, "--recording", kept, "--json", out)
