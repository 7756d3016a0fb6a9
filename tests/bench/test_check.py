from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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
    path.write_text("[floors]\na = 'fast'\n")
    with pytest.raises(SystemExit, match="holds no floors"):
        check.read_floors(path, {"a": 1.0})


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
        assert ("noise" in found) == ("0.8" in name)
        assert ("draft's choice" in found) == name.startswith("model")
    assert own["model:8, greedy"]["tokens"] > 3 > 1 == own["off, greedy"]["tokens"]
    document = {"vocabulary": 3000, "own": own, "copied_logits": 1e-5, "daemon": None}
    assert any(line.startswith("| **sum** |") for line in hot_loop.lines(document))
