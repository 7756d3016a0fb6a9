from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

from draftd.models.catalog import load_catalog

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
        if not name.startswith("auto"):  # which chooses by what it measures
            assert ("draft's choice" in found) == name.startswith("model")
    assert own["model:8, greedy"]["tokens"] > 3 > 1 == own["off, greedy"]["tokens"]
    document = {"vocabulary": 3000, "own": own, "copied_logits": 1e-5, "daemon": None}
    assert any(line.startswith("| **sum** |") for line in hot_loop.lines(document))
