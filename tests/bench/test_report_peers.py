from __future__ import annotations

import math
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
    """A contender's cells in the first table."""
    found = [line for line in text.splitlines() if line.startswith(f"| {name} | ")]
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_a_contender_has_its_speed_its_ratios_and_its_tokens_a_pass(program: Program) -> None:
    peers, figures = program("report_peers"), program("report_figures")
    text = peers.section(document(RESULTS))
    heads = [figures.SPEED, figures.GAIN, figures.WHOLE, figures.WHOLE_GAIN, "per pass", "first ms", "MiB"]
    assert cells(text, "contender")[1:] == [*heads, "over its own plain speed", "same", peers.AS_DRAFTD]
    assert cells(text, "draftd off")[1:] == [
        "2.00 (2.00 to 2.00)",
        "1.00x (1.00 to 1.00)",
        "1.83 (1.83 to 1.83)",  # 11 tokens in six seconds, one of them for the first
        "1.00x (1.00 to 1.00)",
        "1.00 (1.00 to 1.00)",
        "1000 (1000 to 1000)",
        "1 (1 to 1)",
        "-",
        "-",
        "-",
    ]
    assert cells(text, "draftd auto")[1] == "2.83 (2.00 to 4.00)"
    assert cells(text, "draftd auto")[2] == "1.41x (1.00 to 2.00)"
    assert cells(text, "draftd auto")[5] == "1.48 (1.00 to 2.20)"  # 11 tokens of 5 passes, 11 of 11
    assert cells(text, "draftd auto")[9] == "2/2"
    assert cells(text, "llama server draft model")[5] == "1.48 (1.00 to 2.20)"  # by what was accepted
    assert cells(text, "llama server draft model")[10] == "1/2"  # one has another text than draftd's target
    assert cells(text, "hf generate plain")[9:] == ["-", "2/2"]
    assert cells(text, "hf generate plain")[5] == "-"
    assert "\npeer draft model: not measured (it has none).\n" in text
    assert "    python bench/side_by_side.py --json b.json\n" in text
    assert "No counter of energy is readable here." in text


def test_the_caption_has_the_versions_of_the_peers_libraries_where_they_are_known(program: Program) -> None:
    section = program("report_peers").section
    told = {"llama server": "xllamacpp 1.2", "hf generate": "transformers 5, torch 2"}
    text = section(document(RESULTS, versions=told))
    assert " Versions: llama server (xllamacpp 1.2), hf generate (transformers 5, torch 2).\n" in text
    for older in (document(RESULTS), document(RESULTS, versions={})):
        assert "Versions" not in section(older)


def test_tokens_a_pass_are_told_where_passes_are_known(program: Program) -> None:
    per_pass = program("report_figures").per_pass
    assert per_pass({"tokens": 11, "rounds": 4, "accepted": 99}) == 11 / 4
    assert per_pass({"tokens": 11, "accepted": 6}) == 11 / 5
    assert all(math.isnan(per_pass({"tokens": 11} | more)) for more in ({}, {"rounds": 0}))


def test_every_quantity_is_told_by_category(program: Program) -> None:
    results = [
        result("draftd off", "1", 2.0, rounds=11, joules=11.0, memory_bytes=2**21),
        result("draftd off", "2", 8.0, rounds=5, joules=22.0, memory_bytes=2**22, category="d"),
        result("draftd off", "3", 2.0, rounds=11, joules=44.0, memory_bytes=2**23, category="d"),
    ]
    text = program("report_peers").section(document(results))
    tables = text.split("By category: ")[1:]
    found = {table.split(".\n")[0]: cells(table, "draftd off")[1:] for table in tables}
    assert found == {
        "tokens a second after the first": ["2.00", "4.00"],
        "over draftd's target alone": ["1.00x", "1.00x"],
        "tokens a second, whole answer": ["1.83", "2.99"],
        "whole answer over draftd's target alone": ["1.00x", "1.00x"],
        "per pass": ["1.00", "1.48"],
        "first ms": ["1000", "1000"],
        "MiB": ["2", "6"],
        "J a token": ["1.00", "2.83"],
    }


def test_a_speed_after_the_first_is_of_prompts_that_left_every_contender_more_to_say(
    program: Program,
) -> None:
    peers, figures = program("report_peers"), program("report_figures")
    results = [
        result("draftd off", "1", 2.0),
        result("draftd off", "2", 8.0),
        result("hf generate assisted", "1", 2.0, first_tokens=6),  # five in five seconds
        result("hf generate assisted", "2", 8.0, first_tokens=11),
    ]
    found = figures.quantities(document(results), counted=False)
    assert found[figures.SPEED] == {"draftd off": {"1": 2.0}, "hf generate assisted": {"1": 1.0}}
    assert found[figures.WHOLE]["draftd off"] == found[figures.WHOLE]["hf generate assisted"]
    assert set(found[figures.WHOLE]["draftd off"]) == {"1", "2"}
    assert "over the 1 of 2 prompts to which every contender had more" in peers.section(document(results))


def test_medians_are_of_each_quantitys_own(program: Program) -> None:
    figures = program("report_figures")
    times = [(9.0, 10.0), (1.0, 6.0), (5.0, 7.0)]  # the first after, and all
    turns = [result("draftd off", "1", 1.0, first_seconds=first, seconds=all_) for first, all_ in times]
    found = figures.quantities(document(turns, repeat=3), counted=False)
    assert found[figures.SPEED]["draftd off"] == {"1": 5.0}
    assert found[figures.WHOLE]["draftd off"] == {"1": pytest.approx(11 / 7)}
    assert found["first ms"]["draftd off"] == {"1": 5000.0}


def test_the_best_fixed_policy_is_chosen_for_each_prompt_and_auto_is_none(program: Program) -> None:
    peers, figures = program("report_peers"), program("report_figures")
    found = document(RESULTS)
    assert figures.best_fixed(figures.by_question(found)) == {
        "1": pytest.approx(8.0),
        "2": pytest.approx(2.0),
    }
    text = peers.section(found)
    assert cells(text, "*draftd best fixed*")[1:6] == [
        "4.00 (2.00 to 8.00)",
        "2.00x (1.00 to 4.00)",
        "2.99 (1.83 to 4.89)",
        "1.63x (1.00 to 2.67)",
        "-",
    ]
    assert "The controller over the best fixed policy: 0.71x (0.50 to 1.00) after the first, 0.80x (" in text
    speedups = text.split("By category: ")[2]
    assert cells(speedups, "draftd best fixed")[1:] == ["2.00x"]
    assert "best fixed" not in peers.section(document(RESULTS[:2] + RESULTS[4:])).split("| contender")[1]
    alone = [result("draftd target in process", question, 99.0) for question in "12"]
    assert figures.best_fixed(figures.by_question(document(RESULTS + alone))) == {
        "1": pytest.approx(8.0),
        "2": pytest.approx(2.0),
    }


def test_a_peer_that_draws_otherwise_is_not_counted_as_wrong(program: Program) -> None:
    peers = program("report_peers")
    results = [
        result("draftd off", "1", 2.0),
        result("draftd auto", "1", 2.0, text="other"),
        result("llama server plain", "1", 2.0),
        result("llama server draft model", "1", 2.0, text="other"),
    ]
    greedy = peers.section(document(results))
    assert [cells(greedy, name)[9] for name in ("draftd auto", "llama server draft model")] == ["0/1", "0/1"]
    assert "other draws" not in greedy
    sampled = peers.section(document(results, sampling={"max_tokens": 11, "temperature": 0.8}))
    assert cells(sampled, "draftd auto")[9] == "0/1"  # whose seed decides on the answer
    assert cells(sampled, "llama server draft model")[9] == "other draws"
    assert cells(sampled, "llama server plain")[9] == "-"
    assert "*other draws*: a library that" in sampled


def test_an_answer_is_the_same_only_if_all_turns_of_both_are(program: Program) -> None:
    def told(plain: str, drafted: str) -> str:
        """The cell for turns of these texts."""
        turns = [result("hf generate plain", "1", 2.0, text=text) for text in plain]
        turns += [result("hf generate assisted", "1", 2.0, text=text) for text in drafted]
        text = program("report_peers").section(document(turns, repeat=3))
        return cells(text, "hf generate assisted")[9]

    assert told("xxx", "xxx") == "1/1"
    assert told("xxx", "xxy") == told("xyx", "xxx") == "0/1"


def test_only_the_same_weights_are_held_to_draftds_target(program: Program) -> None:
    results = [result("draftd off", "1", 2.0)]
    results += [result(f"openvino genai {form} plain", "1", 2.0) for form in ("int4", "GGUF")]
    text = program("report_peers").section(document(results))
    assert cells(text, "openvino genai int4 plain")[10] == "other weights"
    assert cells(text, "openvino genai GGUF plain")[10] == "1/1"


def test_what_a_reader_waits_for_is_told_of_each_contender_that_says_so(program: Program) -> None:
    section = program("report_peers").section
    assert "that a reader waits" not in section(document(RESULTS))
    times: dict[str, Any] = {"first_seconds": 0.5, "sentence_seconds": 2.0}
    results = [
        result("draftd off", "1", 2.0, gaps=[0.1, 0.3], **times),
        result("draftd off", "2", 2.0, gaps=[0.2], **times | {"sentence_seconds": 3.0}),
        result("hf generate plain", "1", 2.0, gaps=[], **times),
        result("llama server plain", "1", 2.0),  # an older file's
    ]
    waits = section(document(results)).split("Milliseconds that a reader waits")[1].split("<details>")[0]
    assert cells(waits, "draftd off")[1:] == ["500/500/500", "2000/3000/3000", "200/300/300"]
    assert cells(waits, "hf generate plain")[1:] == ["500/500/500", "2000/2000/2000", "-"]
    assert "llama server plain" not in waits


def test_energy_is_told_where_it_was_counted(program: Program) -> None:
    counted = [
        result("draftd off", "1", 2.0, joules=22.0),
        result("draftd off", "2", 2.0, joules=-5.0),  # the counter ran over
    ]
    text = program("report_peers").section(document(counted))
    assert cells(text, "draftd off")[8] == "2.00", "one prompt has no interval"
    assert "No counter" not in text
    assert "*J a token*: of the whole processor package" in text


def test_an_error_of_a_library_says_nothing_of_folders(program: Program) -> None:
    error = 'RuntimeError: ir: Could not open the file: "/home/me/models/a.gguf/openvino_model.xml"'
    text = program("report_peers").section(document(RESULTS, missing={"peer": error}))
    assert '(RuntimeError: ir: Could not open the file: "openvino_model.xml").' in text


def test_an_interval_holds_the_mean_and_widens_with_the_spread(program: Program) -> None:
    bootstrap, mean = program("report_figures").bootstrap, program("report_peers").geometric_mean
    assert bootstrap([2.0] * 5, mean) == pytest.approx((2.0, 2.0))
    low, high = bootstrap([1.0, 2.0, 4.0], mean)
    assert 1.0 <= low < 2.0 < high <= 4.0


def test_the_counters_of_processor_packages_are_added_up(program: Program, tmp_path: Path) -> None:
    joules = program("energy").joules
    assert joules(tmp_path) is None
    for zone, name, value in (
        ("intel-rapl:0", "package-0", 1500000),
        ("intel-rapl:0:0", "package-like", 99),  # a part of a package, whatever its name
        ("intel-rapl:1", "package-1", 500000),
        ("intel-rapl:2", "psys", 7000000),  # the whole platform, with both packages in it
    ):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text(f"{value}\n")
    assert joules(tmp_path) == 2.0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("?")
    assert joules(tmp_path) is None


def test_a_run_that_was_ended_says_so(program: Program) -> None:
    peers = program("report_peers")
    assert "ended" not in peers.section(document(RESULTS, asked=2))
    assert "**The run was ended after 2 of 13 prompts.**" in peers.section(document(RESULTS, asked=13))
