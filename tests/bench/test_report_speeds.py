from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from draftd.daemon.bench_table import geometric_mean

Program = Callable[[str], ModuleType]
Speedups = dict[str, dict[str, float | None]]  # by policy, then by category

MACHINE: dict[str, Any] = {"cores": 2, "cpu": "A", "cpu_features": [], "memory_bytes": 2**34}
MACHINE |= {"python": "3.11", "packages": {"draftd": "0.1.0"}, "commit": "abc"}
ASKED: Speedups = {
    "auto": {"a": 0.9, "b": 2.0, "c": 1.9, "d": 1.0},
    "model:3": {"a": 0.5, "b": 2.5, "c": 2.0, "d": 0.8},
    "again": {"a": 4.0, "b": 4.0, "c": 4.0, "d": 0.5},
}


def document(speedups: Speedups, **more: Any) -> dict[str, Any]:
    """A run of `draftd bench`, of two prompts a category."""
    found = next(iter(speedups.values()))
    categories: list[dict[str, Any]] = [
        {"name": name, "prompts": 2, "plain_speed": 10.0, "speedup": value}
        | {"drafted_speed": None if value is None else 10.0 * value, "accepted_length": 2.0}
        | {"drafted": 8, "accepted": 4, "plain_first": 1.0, "drafted_first": 1.5, "same_text": 2}
        for name, value in found.items()
    ]
    return {
        "command": "draftd bench --pair tiny --json /a/b/o.json",
        "machine": MACHINE,
        "pair": "tiny",
        "engine": {"backend": "llama_cpp", "target": "big", "draft": "small", "threads": 2},
        "sampling": {"max_tokens": 64, "temperature": 0.0, "seed": 1},
        "repeat": 1,
        "policies": speedups,
        "categories": categories,
        "geometric_mean_speedup": geometric_mean(value for value in found.values() if value is not None),
        "engine_overhead": 0.01,
        "whole_overhead": 0.02,
        "latency": {policy: {"first token": {"p50": 1.0, "p95": 2.0, "p99": 3.0}} for policy in speedups},
        "ping": None,
    } | more


def test_a_section_says_medians_and_names_the_worst_category_of_each_table(program: Program) -> None:
    section = program("report_speeds").section
    once = section(document(ASKED))
    assert "answers of 64 tokens at most.\n" in once
    assert "medians" not in once
    text = section(document(ASKED, repeat=3))
    assert "answers of 64 tokens at most, medians of 3.\n" in text
    assert "    draftd bench --pair tiny --json o.json\n" in text
    assert "| **geometric mean of 4** | | | **1.36x** (0.95 to 1.95) | | | | |\n" in text
    assert "| *worst* | | | 0.90x a | | | | |\n" in text
    assert "\nLost, below the target alone: a 0.90x.\n" in text
    assert "| *worst* | 0.90x a | 0.50x a | 0.50x d | 0.80 b |\n" in text


def test_what_noise_explains_is_told_apart_from_what_is_lost(program: Program) -> None:
    section = program("report_speeds").section
    ranges = {"a": [0.95, 1.1], "b": [0.9, 1.0], "c": [1.0, 1.0], "d": [0.8, 1.2]}
    speeds: Speedups = {"auto": {"a": 0.9, "b": 0.9, "c": 2.0, "d": 0.99}}
    text = section(document(speeds, repeat=3, plain_ranges=ranges))
    assert "\nLost, below the target alone: a 0.90x (0.95x to 1.10x).\n" in text
    said = "Below the target alone by no more than its own answers differ"
    assert f"\n{said}: b 0.90x (0.90x to 1.00x), d 0.99x (0.80x to 1.20x).\n" in text
    once = section(document(speeds, plain_ranges=ranges))  # one answer has no range
    assert "\nLost, below the target alone: a 0.90x, b 0.90x, d 0.99x.\n" in once
    assert said not in once


def test_a_section_counts_the_categories_where_the_controller_is_as_it_should_be(program: Program) -> None:
    section = program("report_speeds").section
    said = "The controller over the best fixed policy: 0.95 or more in"
    # a lost against drafting nothing, c is at 0.95, d has nothing to win
    assert f"\n\n{said} 2 of 4 categories; below: b 0.800, a 0.900." in section(document(ASKED))
    good: Speedups = {"auto": {"a": 2.0, "b": 1.5}, "model:3": {"a": 2.0, "b": 1.0}}
    assert section(document(good)).endswith(f"{said} 2 of 2 categories.")
    assert "Lost" not in section(document(good))
    assert "best fixed" not in section(document({name: ASKED[name] for name in ("auto", "again")}))
    assert "best fixed" not in section(document({name: ASKED[name] for name in ("model:3", "again")}))


def test_tables_are_whole_and_end_before_the_ping(program: Program) -> None:
    ping = {"count": 9, "daemon_median": 2e-4, "bare_median": 1e-4}
    blocks = program("report_speeds").section(document(ASKED, ping=ping)).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert {line.count("|") for line in table} == {table[0].count("|")}
    assert blocks[-1].startswith("Ping over 9: median 200 µs, a bare ZeroMQ's in the same run 100 µs: 2.00")
    assert not [block for block in blocks if block.startswith("\n")]


def test_a_category_without_a_speed_is_left_out_of_the_means(program: Program) -> None:
    speeds = program("report_speeds")
    found: Speedups = {"off": {"a": 1.0, "b": None}, "auto": {"a": 2.0, "b": None}}
    lines = speeds.policies(document(found))
    assert lines[4:8] == [
        "| a | 1.00x | 2.00x | 2.00 |",
        "| b | - | - | - |",
        "| **geometric mean** | 1.00x | 2.00x | 2.00 |",
        "| *worst* | 1.00x a | 2.00x a | 2.00 a |",
    ]
    assert "no speed is known" in lines[-1]
    known: Speedups = {"off": {"a": 1.0}, "auto": {"a": 2.0}}
    assert "no speed is known" not in str(speeds.policies(document(known)))
    nothing: Speedups = {"auto": {"a": None}, "model:3": {"a": None}}
    assert speeds.policies(document(nothing))[4:7] == [
        "| a | - | - |",
        "| **geometric mean** | - | - |",
        "| *worst* | - | - |",
    ]


def test_a_section_is_read_back(program: Program) -> None:
    speeds, read = program("report_speeds"), program("report_kept").run
    found = read(speeds.section(document(ASKED)))
    assert (found.title, found.command) == (
        "tiny, target in llama_cpp, greedy",
        "draftd bench --pair tiny --json o.json",
    )
    assert (found.speedup, found.mean) == (ASKED["auto"], "1.36x (0.95 to 1.95)")
    assert found.alone == dict.fromkeys(ASKED["auto"], 10.0)
    text = speeds.section(document({"auto": {"a": 2.0, "b": None}}))
    assert "| b | 10.00 | - | - | 2.00 |" in text
    partly = read(text)
    assert (partly.categories, partly.speedup) == (["a", "b"], {"a": 2.0})
    assert read(speeds.summary([document(ASKED)])) is None
    assert read("### By hand\n\n    draftd bench\n\nNo table.") is None


def test_all_runs_are_one_table(program: Program) -> None:
    sampled = {"max_tokens": 32, "temperature": 0.8, "seed": 1}
    fixed: Speedups = {"model:4": {"a": 2.0, "b": None}}
    bare = {name: value for name, value in MACHINE.items() if name != "commit"}
    text = program("report_speeds").summary(
        [document(ASKED, repeat=3), document(fixed, sampling=sampled, machine=bare)]
    )
    assert text.startswith("### Speeds in short\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[4:]]
    assert rows[0] == [
        *("pair", "backend", "temperature", "asked", "over the target alone", "worst category"),
        *("auto / best fixed", "asked again", "commit"),
    ]
    assert rows[2:] == [
        [
            *("tiny", "llama_cpp", "greedy", "8 x 64 tokens, medians of 3", "1.36x (0.95 to 1.95)"),
            *("0.90x a", "0.91 (model:3)", "2.38x", "abc"),
        ],
        ["tiny", "llama_cpp", "0.8", "4 x 32 tokens", "2.00x model:4", "2.00x a", "-", "-", "-"],
    ]


def test_only_runs_of_the_same_categories_are_compared_in_the_picture(program: Program) -> None:
    speeds = program("report_speeds")
    run = document(ASKED)
    other = run | {"pair": "other", "categories": run["categories"][:1]}
    read = program("report_kept").run
    drawn = speeds.plot([read(speeds.section(each)) for each in (run, other, run | {"pair": "third"})])
    assert [pair in drawn for pair in ("tiny, target", "other, target", "third, target")] == [
        True,
        False,
        True,
    ]
