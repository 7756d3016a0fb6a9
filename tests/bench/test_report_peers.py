from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Program = Callable[[str], ModuleType]


def result(contender: str, question: str, speed: float, **more: Any) -> dict[str, Any]:
    """An answer of 11 tokens, the first after a second."""
    times = {"seconds": 1.0 + 10.0 / speed, "first_seconds": 1.0}
    return {"contender": contender, "question_id": question, "category": "c", "tokens": 11, "text": "t"} | (
        times | more
    )


def document(results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "pair": "tiny",
        "backend": "llama_cpp",
        "command": "python bench/side_by_side.py --json /a/b.json",
        "threads": 1,
        "repeat": 1,
        "sampling": {"max_tokens": 11, "temperature": 0.0},
        "memory_bytes": {each["contender"]: 2**20 for each in results},
        "missing": {"peer draft model": "it has none"},
        "results": results,
    } | more


RESULTS = [
    result("draftd off", "1", 2.0, rounds=11),
    result("draftd off", "2", 2.0, rounds=11),
    result("draftd model:8", "1", 8.0, rounds=4),
    result("draftd model:8", "2", 1.0, rounds=5),
    result("draftd auto", "1", 4.0, rounds=5),
    result("draftd auto", "2", 2.0, rounds=11),
    result("llama server draft model", "1", 3.0, accepted=6, text="other"),
    result("llama server draft model", "2", 3.0, accepted=0),
    result("hf generate plain", "1", 5.0),
    result("hf generate plain", "2", 5.0),
]


def cells(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} | ") and "x (" in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_contender_has_its_speed_its_ratios_and_its_tokens_a_pass(program: Program) -> None:
    text = program("report_peers").section(document(RESULTS))
    assert cells(text, "draftd off")[1:5] == ["2.00", "1.00x (1.00 to 1.00)", "-", "1.00"]
    assert cells(text, "draftd auto")[1] == "2.83"
    assert cells(text, "draftd auto")[2].startswith("1.41x (")
    assert cells(text, "draftd auto")[4] == "1.38"  # 22 tokens of 16 passes
    assert cells(text, "llama server draft model")[4] == "1.38"  # as many, by what was accepted
    assert cells(text, "hf generate plain")[4] == "-"
    assert "\npeer draft model: not measured (it has none).\n" in text
    assert "    python bench/side_by_side.py --json b.json\n" in text
    assert "No counter of energy is readable here." in text


def test_the_best_fixed_policy_is_chosen_for_each_prompt_and_auto_is_none(program: Program) -> None:
    peers = program("report_peers")
    found = document(RESULTS)
    assert peers.best_fixed(peers.by_question(found)) == {"1": pytest.approx(8.0), "2": pytest.approx(2.0)}
    text = peers.section(found)
    assert cells(text, "*draftd best fixed*")[1] == "4.00"
    assert "The controller over the best fixed policy: 0.71x (" in text
    assert "best fixed*" not in peers.section(document(RESULTS[:2] + RESULTS[4:])).split("| contender")[1]


def test_energy_is_told_where_it_was_counted(program: Program) -> None:
    counted = [
        result("draftd off", "1", 2.0, joules=22.0),
        result("draftd off", "2", 2.0, joules=-5.0),  # the counter ran over
    ]
    text = program("report_peers").section(document(counted))
    assert text.split("| draftd off")[1].splitlines()[0].endswith("| 2.00 |")
    assert "No counter" not in text


def test_an_interval_holds_the_mean_and_widens_with_the_spread(program: Program) -> None:
    bootstrap, mean = program("report_peers").bootstrap, program("report_peers").geometric_mean
    assert bootstrap([2.0] * 5, mean) == pytest.approx((2.0, 2.0))
    low, high = bootstrap([1.0, 2.0, 4.0], mean)
    assert 1.0 <= low < 2.0 < high <= 4.0


def test_the_processors_counters_are_added_up(program: Program, tmp_path: Path) -> None:
    joules = program("energy").joules
    assert joules(tmp_path) is None
    for name, value in {"intel-rapl:0": "1500000", "intel-rapl:1": "500000", "intel-rapl:0:0": "99"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
    assert joules(tmp_path) == 2.0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("?")
    assert joules(tmp_path) is None
