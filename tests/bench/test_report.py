from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.bench.conftest import BENCH
from tests.bench.test_report_peers import RESULTS
from tests.bench.test_report_peers import document as beside
from tests.bench.test_report_speeds import ASKED, MACHINE, Speedups
from tests.bench.test_report_speeds import document as own

Program = Callable[[str], ModuleType]


def test_a_section_from_another_machine_says_so(program: Program) -> None:
    report = program("report")
    mine = {"cores": 2, "cpu": "A", "cpu_features": ["avx512_vnni"], "memory_bytes": 2**34, "python": "3.11"}
    mine["packages"] = {"draftd": "0.1.0"}
    here = report.machine({"machine": mine})
    assert report.placed("text", {"machine": dict(mine)}, here) == "text"
    other = report.placed("text", {"machine": mine | {"cores": 64}}, here)
    assert other.startswith("text\n\nMeasured on another machine: 64 cores (A; avx512_vnni, no AMX), 16 GiB")
    of = report.placed("text", {"machine": mine | {"commit": "abc+"}}, here)
    assert of == "text\n\nMeasured at commit abc+."
    for kind in ("simulated", "simulated apps"):
        text = report.placed("", {"kind": kind, "machine": mine | {"commit": "abc", "cores": 64}}, here)
        assert text.startswith("\n\nSimulated at commit abc.\n\nSimulated on another machine: 64 cores")
        assert "Measured" not in text


@pytest.mark.parametrize("text", ["", "[]", '{"machine": {}}', '{"machine": {}, "kind": "dream"}'])
def test_a_file_without_figures_is_named(program: Program, tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, "utf-8")
    with pytest.raises(SystemExit, match=r"x\.json"):
        program("report").read(file)
    with pytest.raises(SystemExit, match=r"gone\.json"):
        program("report").read(tmp_path / "gone.json")


@pytest.fixture
def page(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page to be written anew, with pictures of an earlier report and others."""
    docs = tmp_path / "docs"
    docs.mkdir()
    monkeypatch.setattr(program("report"), "DOCS", docs)
    page = docs / "benchmarks.md"
    page.write_text(
        "# Benchmarks\n\n![by hand](above.svg)\n\n## Results\n\nold\n\n![speeds](peers1.svg)\n\n"
        "![outside](../outside.svg)\n\n![a photograph](photo.png)\n\n![gone](gone.svg)\n",
        "utf-8",
    )
    for name in ("above.svg", "peers1.svg", "unnamed.svg", "photo.png", "../outside.svg"):
        (docs / name).write_text("old", "utf-8")
    return page


def report(program: Program, folder: Path, documents: list[dict[str, Any]]) -> None:
    files = [folder / f"{number}.json" for number in range(len(documents))]
    for file, document in zip(files, documents, strict=True):
        file.write_text(json.dumps(document), "utf-8")
    program("report").main(files)


def test_pictures_are_named_by_what_they_show_and_those_shown_no_more_go(
    program: Program, page: Path, tmp_path: Path
) -> None:
    sampled = {"max_tokens": 11, "temperature": 0.8}
    run = beside(RESULTS, kind="side by side", machine=MACHINE)
    report(program, tmp_path, [own(ASKED), run, run | {"sampling": sampled}, run])
    text = page.read_text("utf-8")
    assert text.startswith("# Benchmarks\n\n![by hand](above.svg)\n\n## Results\n\n2 cores (A; ")
    shown = re.findall(r"\]\((.+)\)", text.partition("## Results")[2])
    assert shown == [
        "speedup.svg",
        "side-by-side-tiny-llama_cpp-greedy.svg",
        "side-by-side-tiny-llama_cpp-0.8.svg",
        "side-by-side-tiny-llama_cpp-greedy-2.svg",  # the same asked again
    ]
    kept = {"above.svg", "unnamed.svg", "photo.png", "benchmarks.md"}
    assert {file.name for file in page.parent.iterdir()} == {*shown, *kept}
    assert (tmp_path / "outside.svg").exists()
    report(program, tmp_path, [run])
    assert {file.name for file in page.parent.iterdir()} == {*shown[:3], *kept}
    assert ElementTree.fromstring((page.parent / shown[1]).read_text("utf-8")).tag.endswith("svg")


def test_a_report_that_fails_leaves_page_and_pictures(program: Program, page: Path, tmp_path: Path) -> None:
    before = page.read_text("utf-8")
    with pytest.raises(KeyError):
        report(program, tmp_path, [own(ASKED), {"kind": "roofline", "pair": "tiny", "machine": MACHINE}])
    assert page.read_text("utf-8") == before
    assert not (page.parent / "speedup.svg").exists()
    assert (page.parent / "peers1.svg").exists()


def test_the_results_begin_with_all_speeds_and_other_pages_find_theirs(
    program: Program, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown: Speedups = {"auto": ASKED["auto"] | {"a": None}}
    other = own(unknown, pair="other")
    report(program, tmp_path, [own(ASKED), other, beside(RESULTS, kind="side by side", machine=MACHINE)])
    headings = re.findall(r"^### (.*)$", page.read_text("utf-8"), re.MULTILINE)
    title = "tiny, target in llama_cpp, greedy"
    run = "Side by side: tiny, draftd's target in llama_cpp, greedy"
    second = title.replace("tiny", "other")
    assert headings == ["Speeds in short", title, second, "Side by side, all runs", run]
    monkeypatch.syspath_prepend(str(BENCH.parent / "docs"))
    speedups = program("speedups")
    monkeypatch.setattr(speedups, "PAGE", page)
    assert [found.title for found in speedups.runs()] == [title, second]
    table = speedups.by_category()
    assert f"| prompts | {title} | {second} |" in table
    assert "| a | 0.90x | - |" in table
    assert "| **geometric mean** | **1.36x** | **1.56x** |" in table
    assert f"| {second} | 10.0 to 10.0 | **1.56x** | 1.00x d | 2.00x b |" in speedups.by_run()
