from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draftd.drafts.base import Context, Proposal
from tests.bench.conftest import counted

Program = Callable[[str], ModuleType]


class Counting:
    """A draft that always goes on counting."""

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return [Proposal([each.tokens[-1] + 1], [0.9]) for each in contexts]


def test_a_places_rows_by_hand(program: Program, place: Any) -> None:
    apps = program("simulated_apps")
    document = {"rows": apps.at(place, [1, 2], [counted(program, 3, 12)], Counting)}
    rows = {(row["apps"], row["policy"]): row for row in document["rows"]}
    assert list(rows) == [(count, policy) for count in (1, 2) for policy in ("off", "auto", "model:4")]
    for (_, policy), row in rows.items():
        if policy != "auto":  # what one app probes the next does not
            assert row["fairness"] == pytest.approx(1.0), "the same answer"
    plain = rows[1, "off"]
    assert plain["late"] is None
    assert plain["throughput"] == pytest.approx(12 / (1020 + 11 * 1000), rel=1e-3)
    assert plain["speeds"] == pytest.approx([11 / 11000], rel=1e-3)
    both = rows[2, "off"]
    assert both["throughput"] == pytest.approx(24 / (1050 + 11 * 1010), rel=1e-3)
    assert both["first_seconds"] == pytest.approx([1050, 1050], abs=5)
    assert both["gap_p95"] == pytest.approx(1010, abs=5)
    assert both["gap_worst"] == pytest.approx(1010, abs=5)
    # The late one's prompt has three tokens, beside the other's one.
    assert both["late"] == pytest.approx({"first_seconds": 1030, "longest_gap": 1030}, abs=5)
    assert apps.gain(document, plain) == (1.0, 1.0)
    # Five tokens after four drafted ones, behind four that are to be read, then behind two; then the last.
    rest = (130 + 3 * 100 + 1040) + (110 + 3 * 100 + 1040) + 1000
    drafted = apps.gain(document, rows[1, "model:4"])
    assert drafted == pytest.approx(((1020 + 11000) / (1020 + rest), 11000 / rest), rel=1e-3)


def test_the_late_one_has_the_longest_prompt_and_the_others_another(program: Program, place: Any) -> None:
    apps = program("simulated_apps")
    answers = [counted(program, length, 12) for length in (3, 70, 4)]
    assert apps.latest(answers) is answers[1]
    off = apps.at(place, [3], answers, Counting)[0]
    # Both prompts that come first are fed in one pass; of the late one 64 tokens beside two others, then 6.
    assert off["late"] == pytest.approx({"first_seconds": 1650 + 1070, "longest_gap": 1650}, abs=5)
    assert len(off["first_seconds"]) == 3


def test_more_apps_than_answers_ask_for_these_again(program: Program, place: Any) -> None:
    answers = [counted(program, 3, 4), counted(program, 5, 2)]
    off = program("simulated_apps").at(place, [3], answers, Counting)[0]
    assert len(off["speeds"]) == 3
    assert off["speeds"][0] == pytest.approx(off["speeds"][2], rel=1e-3)
    assert off["throughput"] == pytest.approx(10 / (1100 + 1020 + 2 * 1010), rel=1e-3)


def test_gains_and_waits_by_hand(program: Program) -> None:
    apps, replay = program("simulated_apps"), program("replay")
    found = [replay.Stream(10.0, [11.0, 12.0, 15.0]), replay.Stream(10.0, [12.0, 13.0])]
    row = apps.at_once(found, [5, 2])
    assert row["throughput"] == pytest.approx(7 / 5)
    assert row["speeds"] == [1.0, 1.0]
    assert row["fairness"] == pytest.approx(1.0)
    assert row["first_seconds"] == [1.0, 2.0]
    assert (row["gap_p95"], row["gap_worst"]) == (3.0, 3.0)
    late = replay.Stream(12.5, [14.0, 15.0])
    assert apps.one_late([*found, late]) == {"first_seconds": 1.5, "longest_gap": 3.0}
    assert apps.one_late([found[1], replay.Stream(20.0, [21.0, 22.0])])["longest_gap"] is None
    here = {"machine": "here", "apps": 2}
    document = {
        "rows": [
            {"machine": "there", "apps": 2, "policy": "off", "throughput": 9.0, "speeds": [9.0, 9.0]},
            {"machine": "here", "apps": 1, "policy": "off", "throughput": 9.0, "speeds": [9.0]},
            here | {"policy": "off", "throughput": 4.0, "speeds": [2.0, 2.0]},
            here | {"policy": "auto", "throughput": 6.0, "speeds": [1.0, 5.0]},
        ]
    }
    assert apps.gain(document, document["rows"][3]) == (1.5, 0.5)


def test_every_table_says_that_it_is_simulated_and_with_which_inputs(program: Program, place: Any) -> None:
    apps = program("simulated_apps")
    answers = [counted(program, 3, 4)]
    document = {"pair": "tiny", "models": "these", "inputs": [asdict(place)], "late_prompt": 3}
    document |= {"answers": [["a", 4]], "rows": apps.at(place, [1, 2], answers, Counting)}
    blocks = "\n".join(apps.lines(document)).split("\n\n")
    tables = [number for number, block in enumerate(blocks) if block.startswith("|")]
    assert len(tables) == 2
    assert all("SIMULATED" in blocks[number - 1] for number in tables)
    assert "SIMULATED, here: a pass 1000000.0 ms, each row more 10000.00 ms" in blocks[tables[1] - 1]
    assert blocks[tables[1]].startswith("| SIMULATED, apps | policy | ")
    off = blocks[tables[1]].splitlines()[2]
    assert off.startswith("| 1 | off | 0.0 | 1.00x | 1.00x | 1.000 | ")
    assert off.endswith(" | - | - |")


@pytest.mark.usefixtures("tiny_pair")
def test_apps_of_a_real_pair_are_replayed_from_one_recording(
    run_main: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"question_id": each, "category": each, "turns": [f"say {each}"]} for each in ("a", "b")]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    out, kept = tmp_path / "out.json", tmp_path / "kept.npz"
    given = ["--pair", "tiny", "--prompts", prompts, "--max-tokens", "12", "--places", "8"]
    given += ["--recording", kept, "--json", out]
    run_main("simulated_apps", *given, "--apps", "1", "3")
    assert "recorded b: " in capsys.readouterr().out
    document = json.loads(out.read_text("utf-8"))
    assert document["kind"] == "simulated apps"
    assert document["models"] == "target target, draft draft"
    assert [(row["apps"], row["policy"]) for row in document["rows"]] == [
        (count, policy) for count in (1, 3) for policy in ("off", "auto", "model:4")
    ]
    for row in document["rows"]:
        assert len(row["speeds"]) == row["apps"]
        assert 0 < row["fairness"] <= 1.0001
        assert (row["late"] is None) == (row["apps"] == 1)
    # What one program recorded the other takes.
    run_main("simulated_gpu", *given)
    assert "recorded b: " not in capsys.readouterr().out
    assert json.loads(out.read_text("utf-8"))["kind"] == "simulated"
