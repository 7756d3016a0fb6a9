from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from draftd.drafts.base import Context
from draftd.models.base import Span
from draftd.models.catalog import load_catalog
from tests.daemon.test_bench import answer

Program = Callable[[str], ModuleType]


def test_a_ratio_below_its_floor_is_named(program: Program) -> None:
    check = program("check")
    floors = {"a": 1.0, "b": 2.0, "c": 0.1}
    measured = {"a": 1.0, "b": 1.9, "c": float("nan")}  # what could not be measured is no pass
    assert check.slower(measured, floors) == ["b", "c"]
    assert [row.split("|")[-2].strip() for row in check.lines(measured, floors)[2:]] == [
        "ok",
        "SLOWER",
        "SLOWER",
    ]


def test_floors_are_read_as_they_were_written(program: Program, tmp_path: Path) -> None:
    check = program("check")
    path = tmp_path / "floors.toml"
    floors = {"auto / target alone, edit": 1.25, "a round's own code, 0.8": 0.5}
    path.write_text(check.floors_file(floors), "utf-8")
    assert check.read_floors(path, dict.fromkeys(floors, 1.0)) == floors
    with pytest.raises(SystemExit, match=r"measure different things \(auto / target alone, edit\)"):
        check.read_floors(path, {"a round's own code, 0.8": 1.0})
    with pytest.raises(SystemExit, match=r"measure different things \(new\)"):
        check.read_floors(path, dict.fromkeys([*floors, "new"], 1.0))
    with pytest.raises(SystemExit, match="remove it and record all"):  # --record reads it, too
        check.read_floors(path, {})
    path.write_text("[floors]\na = 'fast'\n")
    with pytest.raises(SystemExit, match="holds no floors"):
        check.read_floors(path, {"a": 1.0})


def test_a_run_records_floors_that_a_slower_one_misses(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = program("check")
    path, out = tmp_path / "floors.toml", tmp_path / "out.json"

    def ran(measured: float, *options: str) -> int:
        monkeypatch.setattr(check, "own_code", lambda: {"a": measured, check.PING: measured})
        monkeypatch.setattr(check, "through_a_daemon", lambda: {"b": 2.0})
        monkeypatch.setattr(sys, "argv", ["check.py", "--floors", str(path), "--json", str(out), *options])
        return int(check.main())

    assert ran(1.0, "--record") == 0
    floors = {"a": 0.75, check.PING: 0.4, "b": 1.5}
    assert tomllib.loads(path.read_text("utf-8"))["floors"] == floors
    assert (ran(0.76), ran(0.74)) == (0, 1)
    assert capsys.readouterr().err == "slower than before: a (floors: floors.toml)\n"
    document = json.loads(out.read_text("utf-8"))
    assert (document["ratios"], document["floors"]) == ({"a": 0.74, check.PING: 0.74, "b": 2.0}, floors)
    assert (ran(4.0, "--record"), ran(0.74), ran(0.8, "--record"), ran(0.61)) == (0, 1, 0, 0)  # never raised


def test_the_draft_that_is_made_is_the_part_of_its_target_that_counts(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = program("check")
    monkeypatch.setattr(check, "LAYERS", 3)
    variables = check.made_pair(tmp_path)
    target, draft = (load_file(tmp_path / name / "model.safetensors") for name in ("target", "draft"))
    assert {name for name in target if name not in draft} == {name for name in target if ".layers.2." in name}
    assert all(np.array_equal(tensor, target[name]) for name, tensor in draft.items())
    silent = {name for name, tensor in target.items() if "norm" not in name and not tensor.any()}
    ends = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    assert silent == {f"model.layers.2.{end}" for end in ends}
    assert load_catalog(Path(variables["DRAFTD_CATALOG"])).pair("made").draft is not None


def test_the_recorded_floors_are_those_of_the_program(program: Program) -> None:
    check, hot_loop = program("check"), program("hot_loop")
    floors = tomllib.loads(check.FLOORS.read_text("utf-8"))["floors"]
    assert all(floor > 0 for floor in floors.values())
    own = [name for name in floors if name.startswith("a fixed work / ")]
    assert [name.split("own code, ")[1] for name in own] == list(hot_loop.MODES)
    drafting = [name.split(" / ")[0] for name in floors if name.endswith(" / target alone")]
    assert tuple(drafting) == check.POLICIES[1:]


def test_the_hot_loops_parts_are_measured_apart(program: Program) -> None:
    hot_loop = program("hot_loop")
    watch = hot_loop.Stopwatch()
    inner = watch.wrap("inner", lambda: sum(range(200_000)))
    watch.wrap("outer", lambda: inner())()
    assert watch.seconds["outer"] < watch.seconds["inner"]


def test_a_round_of_our_own_code(program: Program) -> None:
    hot_loop = program("hot_loop")
    own = hot_loop.own_code(3000, 40, 1)
    assert list(own) == list(hot_loop.MODES)
    for name, found in own.items():
        assert {"schedule", "verification", "controller"} <= set(found)
        assert ("noise" in found) == ("0.8" in name and "rejection" not in name)
        assert ("draft's choice" in found) == name.startswith(("model", "auto"))
    assert own["model:8, greedy"]["tokens"] > 3 > 1 == own["off, greedy"]["tokens"]
    assert own["auto, greedy"]["tokens"] > 2, "drafting pays where passes take their time"
    document = {"vocabulary": 3000, "own": own, "copied_logits": 1e-5, "daemon": None}
    older = hot_loop.lines(document)
    assert any(line.startswith("| **sum** |") for line in older)
    place = asdict(hot_loop.PLACE)
    *lines, told = hot_loop.lines(document | {"place": place})
    assert lines == [*older, ""]
    assert f"this place: {place['name']} ({place['source']}), a pass {place['pass_ms']:.1f} ms" in told


def test_of_a_daemons_rounds_the_prompts_counts_neither_for_time_nor_for_tokens(program: Program) -> None:
    found = program("hot_loop").a_round(answer(tokens=11, seconds=3.0, rounds=6))
    assert found == pytest.approx(
        {
            "draft model": 0.45 / 5,
            "target": 0.9 / 5,
            "engine": 0.1 / 5,
            "queues, sockets and client": (3.0 - 0.45 - 0.9 - 0.1 - 0.45) / 5,
            "tokens": 10 / 5,
        }
    )


def test_prepared_passes_take_a_places_time_by_the_engines_clock(program: Program, place: Any) -> None:
    prepared, clock = program("prepared"), program("replay").Clock()
    rows, text = np.zeros((3, 50), np.float32), list(range(40))
    target = prepared.Prepared(rows, text, clock, place)
    (found,) = target.forward([Span(0, 9, [9, 10, 11], 3)])
    assert found.argmax(axis=1).tolist() == [10, 11, 12]
    assert clock.offset == pytest.approx(1020, abs=5)  # two rows beyond the first
    draft = prepared.PreparedDraft(rows[:1].copy(), text, clock, place)
    context = Context(
        0, text[:12], 2, lambda row, position: (int(row.argmax()), 0.9), lambda confidences: True
    )
    (proposal,) = draft.propose([context])
    assert proposal.tokens == [12, 13]
    assert clock.offset == pytest.approx(1020 + 200, abs=5)
