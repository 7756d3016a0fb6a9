"""What a report leaves of the one before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.bench.test_report_limits import APPS, DOCUMENTS
from tests.bench.test_report_peers import RESULTS, cells, result
from tests.bench.test_report_peers import document as beside
from tests.bench.test_report_speeds import ASKED, MACHINE, Speedups
from tests.bench.test_report_speeds import document as own

Program = Callable[[str], ModuleType]
Report = Callable[..., list[str]]

BARE = {"command": "python bench/x.py", "machine": MACHINE}
OF = BARE | {"pair": "tiny"}
BY_KIND = {each["kind"]: each for each in DOCUMENTS}
SCALING, SUFFIX, CHECK = BY_KIND["scaling"] | OF, BY_KIND["suffix"] | BARE, BY_KIND["check"] | BARE
APPS_ONLY = SCALING | {"contexts": [], "lengths": [], "cores": []}
SAMPLED = {"max_tokens": 64, "temperature": 0.8, "seed": 1}
OTHER = MACHINE | {"cores": 64}


@pytest.fixture
def page(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setattr(program("report"), "DOCS", docs)
    (docs / "benchmarks.md").write_text("# Benchmarks\n\nby hand\n\n## Results\n", "utf-8")
    return docs / "benchmarks.md"


@pytest.fixture
def report(program: Program, page: Path, tmp_path: Path) -> Report:
    """Writes the page from these documents, and gives its results' sections."""

    def write(*documents: dict[str, Any]) -> list[str]:
        files = [tmp_path / f"{number}.json" for number in range(len(documents))]
        for file, document in zip(files, documents, strict=True):
            file.write_text(json.dumps(document), "utf-8")
        program("report").main(files)
        above, results = page.read_text("utf-8").split("## Results\n\n")
        assert above == "# Benchmarks\n\nby hand\n\n"
        return [section.strip() for section in results.split("### ")]

    return write


def names(sections: list[str]) -> list[str]:
    return [section.partition("\n")[0] for section in sections[1:]]


def rival(results: list[dict[str, Any]] = RESULTS, **more: Any) -> dict[str, Any]:
    return beside(results, kind="side by side", machine=MACHINE, **more)


def test_a_section_is_replaced_in_its_place_and_the_others_stay(page: Path, report: Report) -> None:
    first = report(CHECK, SUFFIX, APPS_ONLY, SCALING | {"apps": []})
    guard = "The guard against getting slower"
    assert names(first) == [
        "Scaling, apps: tiny, target in llama_cpp",
        "Scaling, contexts, lengths and cores: tiny, target in llama_cpp",
        "What the suffix draft costs",
        guard,
    ]
    picture = page.with_name("scaling-tiny-llama_cpp-contexts-lengths-cores.svg")
    picture.write_text("kept", "utf-8")
    second = report(SUFFIX | {"command": "anew"})
    assert [*second[:3], second[4]] == [*first[:3], first[4]]
    assert "    anew\n" in second[3]
    assert picture.read_text("utf-8") == "kept"
    third = report(DOCUMENTS[0] | OF | {"dtype": "float32"}, APPS | OF, CHECK | {"command": "again"})
    assert names(third) == [
        "SIMULATED, several apps in such places: tiny",
        *names(first)[:3],
        "Quality, float32: tiny",
        guard,
    ]
    assert third[2:5] == [*first[1:3], second[3]]
    assert third[6] != first[4]
    assert report(SUFFIX | {"command": "anew"}) == third


def test_a_kept_section_says_where_it_was_made(report: Report) -> None:
    first = report(APPS_ONLY, SUFFIX, APPS | OF, own(ASKED), rival())
    second = report(SUFFIX | {"machine": OTHER})
    assert second[0].startswith("64 cores (A; ")
    for before, after in zip(first[1:], second[1:], strict=True):
        made = "Simulated" if before.startswith("SIMULATED") else "Measured"
        if before.startswith(("Speeds in short", "Side by side, all")):
            assert after == before
            continue
        if not before.startswith("What the suffix"):
            at = f"{made} at commit abc."
            assert after == before.replace(at, f"{at}\n\n{made} on another machine: {first[0]}")
        assert after.count("on another machine") == (not before.startswith("What the suffix"))
    third = report(CHECK | {"machine": OTHER | {"cores": 3}})
    assert f"Measured on another machine: {second[0]}" in third[-2], "the suffix draft's"
    assert third[1:-2] == second[1:-1], "which have said it"
    back = report(SUFFIX)
    assert back[:-1] == first, "on the first machine's page there is nothing to say"
    assert "Measured on another machine: 3 cores" in back[-1], "the guard's"


def test_rows_of_other_runs_stay_and_the_picture_has_them_too(page: Path, report: Report) -> None:
    first = report(own(ASKED), own(ASKED, sampling=SAMPLED), own(ASKED, pair="big"))
    before = [line for line in first[1].splitlines() if line.startswith("| ")]
    drawn = page.with_name("speedup.svg").read_text("utf-8")
    auto: Speedups = {"auto": {"a": 3.0}}
    second = report(own(auto, sampling=SAMPLED), own(auto, pair="small"))
    after = [line for line in second[1].splitlines() if line.startswith("| ")]
    assert [*after[:2], after[3]] == [*before[:2], before[3]]
    assert after[2].startswith("| tiny | llama_cpp | 0.8 | 2 x 64 tokens | 3.00x | 3.00x a |")
    assert after[4].startswith("| small | llama_cpp | greedy |")
    new = page.with_name("speedup.svg").read_text("utf-8")
    shown = [f"{pair}, target in llama_cpp, greedy" in new for pair in ("tiny", "big", "small")]
    assert shown == [True, True, False], "of which the last was asked less"
    assert new != drawn
    assert names(second) == [*names(first), "small, target in llama_cpp, greedy"]
    assert report(CHECK)[1] == second[1]
    assert page.with_name("speedup.svg").exists()


def test_columns_of_other_runs_stay(report: Report) -> None:
    sampled = {"max_tokens": 11, "temperature": 0.8}
    first = report(rival(), rival(sampling=sampled), rival(pair="big", backend="transformers"))
    results = [result("draftd off", "1", 4.0), result("draftd suffix:4", "1", 6.0)]
    second = report(
        rival(results, sampling=sampled, missing={"llama server draft model": "gone"}),
        rival(results[:1], pair="small"),
    )
    heads = ["tiny, llama_cpp, greedy", "tiny, llama_cpp, temperature 0.8", "big, transformers, greedy"]
    assert cells(first[1], "contender") == ["contender", *heads]
    assert cells(second[1], "contender") == ["contender", *heads, "small, llama_cpp, greedy"]
    for name, kept, new in (
        ("draftd off", "2.0, 1.00x", "4.0, 1.00x"),
        ("draftd auto", "2.8, 1.41x", "not asked"),
        ("llama server draft model", "3.0, 1.50x", "failed"),
        ("hf generate plain", "5.0, 2.50x", "other target"),
        ("draftd suffix:4", "not asked", "6.0, 1.50x"),
    ):
        assert cells(second[1], name)[1:4] == [kept, new, kept]
    before, after = (
        [line.split(" | ")[0] for line in sections[1].splitlines() if line.startswith("| ")]
        for sections in (first, second)
    )
    assert after == [*before, "| draftd suffix:4"]
    assert report(CHECK)[1] == second[1]


def test_two_runs_of_a_heading_are_replaced_by_one_and_a_row_without_figures_goes(
    page: Path, report: Report
) -> None:
    report(rival(), rival(sampling={"max_tokens": 99, "temperature": 0.0}))
    left = report(rival(RESULTS[:2]))
    run = "Side by side: tiny, draftd's target in llama_cpp, greedy"
    assert names(left) == ["Side by side, all runs", run]
    assert left[1].splitlines()[4:] == [
        "| contender | tiny, llama_cpp, greedy |",
        "|---|---|",
        "| draftd off | 2.0, 1.00x |",
    ]
    assert [file.name for file in page.parent.glob("*.svg")] == ["side-by-side-tiny-llama_cpp-greedy.svg"]
