"""The report's sections and pictures of all that is no run of `draftd bench` and no comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from draftd.daemon.bench_ping import PingReport
from draftd.daemon.bench_scores import SCORES, Row
from tests.bench.test_report_speeds import MACHINE

Program = Callable[[str], ModuleType]

TWO = ("off", "auto")
DOCUMENTS: list[dict[str, Any]] = [
    {
        "kind": "quality",
        "items": {"qa": 2},
        "max_tokens": 9,
        "rows": [
            asdict(Row("target", dict.fromkeys(SCORES, 50.0), 2, None, [], [], 2, 30, 0)),
            asdict(Row("target, drafting", dict.fromkeys(SCORES, 49.0), 1, 1, [0.125], [7], 2, 30, 20)),
        ],
    },
    {
        "kind": "roofline",
        "backend": "transformers",
        "threads": 2,
        "bandwidth": 1e10,
        "bytes": {"target": 10**9, "draft": 10**8},
        "pass_seconds": {"1": 0.2, "9": 0.3},
        "plain_seconds": 0.2,
        "drafted_seconds": 0.02,
        "reached": [0.9, 0.8, 0.5],
        "speedup": {"auto": 1.5},
        "pings": {kind: asdict(PingReport(9, *[1e-4] * 6)) for kind in ("idle", "under load")},
    },
    {
        "kind": "scaling",
        "backend": "llama_cpp",
        "apps": [
            {
                "apps": 2,
                "policy": "off",
                "throughput": 3.0,
                "fairness": 0.9,
                "speeds": [1.0, 2.0],
                "first_seconds": [1.0, 2.0],
                "seconds": [4.0, 5.0],
            }
        ],
        "contexts": [
            {"context": 256, "prompt_tokens": 9, "policy": each, "speed": 2.0, "first_seconds": 1.0}
            for each in TWO
        ],
        "lengths": [
            {
                "policy": "off",
                "speed": 1.0,
                "speedup": 1.0,
                "tokens_a_pass": 1.0,
                "accepted": 0,
                "drafted": 0,
            }
        ],
        "cores": [{"cores": 1, "policy": each, "speed": 2.0} for each in TWO],
    },
    {
        "kind": "simulated apps",
        "models": "target, draft",
        "inputs": [
            {"name": "a big <one>", "basis": "maker", "source": "its maker", "drafting": "assumed"}
            | dict.fromkeys(("pass_ms", "row_ms", "draft_ms", "read_ms"), 1.0)
        ],
        "answers": [["qa", 9]],
        "late_prompt": 7,
        "rows": [
            {"machine": "a big <one>", "apps": apps, "policy": policy, "throughput": 9.0, "fairness": 1.0}
            | {"speeds": [9.0] * apps, "first_seconds": [1.0] * apps, "gap_p95": 1.0, "gap_worst": 2.0}
            | {"late": {"first_seconds": 1.0, "longest_gap": None} if apps > 1 else None}
            for apps in (1, 2)
            for policy in TWO
        ],
    },
    {
        "kind": "prefill",
        "backend": "llama_cpp",
        "asked": [
            {
                "policy": policy,
                "prefilled": prefilled,
                "prefill": 5.0,
                "first": 6.0,
                "round": 4.0,
                "prompt_tokens": 3,
            }
            for policy in TWO
            for prefilled in ("nothing", "all but the question", "everything")
        ],
    },
    {
        "kind": "verify modes",
        "backend": "llama_cpp",
        "draft": "tiny",
        "prompts": 1,
        "max_tokens": 9,
        "length": 5,
        "found": [
            {"temperature": 0.8, "verify": how, "drafted": drafted, "accepted": 0, "rounds": 2}
            for how, drafted in (("coupled", 0), ("rejection", 8))
        ],
    },
    {
        "kind": "suffix",
        "sizes": [
            {"size": 10**6, "insert": 1e-5, "slowest_insert": 0.01, "drafted": 30.0, "memory": 10**8}
            | dict.fromkeys(("lookup", "lookup_p99", "drafting", "drafting_p99"), 1e-5)
        ],
    },
    {
        "kind": "memory",
        "backend": "llama_cpp",
        "threads": 1,
        "context": 256,
        "slots": 4,
        "max_tokens": 9,
        "target_bytes": 10**6,
        "versions": {"llama server": "xllamacpp 1"},
        "missing": {"llama server draft model": "it has none"},
        "forms": [{"name": "draftd", "peak_bytes": 10**7, "after_bytes": 10**6}],
    },
    {"kind": "check", "ratios": {"a": 1.0}, "floors": {"a": 2.0}},
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[each["kind"] for each in DOCUMENTS])
def test_a_section_names_its_command_and_its_tables_are_whole(
    program: Program, document: dict[str, Any]
) -> None:
    report = program("report_limits")
    text = report.section(document | {"pair": "tiny", "command": "python bench/x.py --json /a/b/o.json"})
    assert text.splitlines()[0].endswith(
        ": tiny" + (f", target in {document['backend']}" if "backend" in document else "")
    )
    assert "    python bench/x.py --json o.json\n" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:
        assert {line.count("|") for line in table} == {table[0].count("|")}


def test_a_quality_run_in_pieces_is_one_table(program: Program) -> None:
    limits = program("report_limits")
    whole = DOCUMENTS[0] | {"pair": "tiny", "dtype": "bfloat16", "command": "draftd --form one"}
    whole["machine"] = MACHINE
    whole["said"] = {"target": {"q1": "yes", "q2": "no"}, "target, drafting": {"q1": "yes", "q2": "no"}}
    more = whole | {
        "command": "draftd --form two",
        "rows": [
            asdict(Row("small", dict.fromkeys(SCORES, 9.0), 2, None, [], [], 2, 30, 0)),
            whole["rows"][0],
        ],
        "said": {"small": {"q1": "yes", "q2": "maybe"}, "target": {"q1": "yes", "q2": "no"}},
    }
    other = more | {"dtype": "float32"}
    later = more | {"machine": MACHINE | {"commit": "def"}}
    found = limits.joined([whole, DOCUMENTS[1], other, more, later])
    assert found[1:] == [DOCUMENTS[1], other, later]
    assert [row["name"] for row in found[0]["rows"]] == ["target", "target, drafting", "small"]
    assert found[0]["rows"][2]["same_as_first"] == 1  # of the first run's answers
    text = limits.section(found[0])
    assert "    draftd --form one\n    draftd --form two\n" in text


SIMULATED = {
    "kind": "simulated",
    "inputs": [{"name": "a big <one>"}],
    "runs": [
        {"machine": "a big <one>", "policy": each, "by_category": {"qa": 2.0}} for each in ("auto", "model:8")
    ],
}

APPS = next(each for each in DOCUMENTS if each["kind"] == "simulated apps")


@pytest.mark.parametrize(("document", "figures"), [(DOCUMENTS[0], 6), (DOCUMENTS[1], 3), (DOCUMENTS[2], 5)])
def test_a_picture_has_a_bar_for_each_figure(
    program: Program, document: dict[str, Any], figures: int
) -> None:
    plots = program("report_plots")
    drawn = ElementTree.fromstring(plots.PLOTS[document["kind"]](document | {"pair": "tiny"}))
    assert max(lengths(drawn)) == program("bars").LONGEST
    assert len(lengths(drawn)) == figures


@pytest.mark.parametrize(("document", "named"), [(SIMULATED, "a big <one>"), (APPS, "a big <one>, apps: 2")])
def test_a_simulation_says_so_in_its_picture(program: Program, document: dict[str, Any], named: str) -> None:
    drawn = program("report_plots").PLOTS[document["kind"]](document | {"pair": "tiny"})
    texts = [each.text for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert str(texts[0]).startswith("SIMULATED")
    assert named in texts


def lengths(drawn: ElementTree.Element) -> list[float]:
    """The bars' lengths, without the legend's squares and the background."""
    found = drawn.iter("{http://www.w3.org/2000/svg}rect")
    return [float(each.attrib["width"]) for each in found if each.attrib["height"] == "10"]


def test_headings_tell_parts_and_types_apart(program: Program) -> None:
    told = program("report_limits").told_apart
    assert told({"kind": "scaling", "apps": [1], "contexts": []}) == "apps"
    assert told({"kind": "scaling", "cores": [1], "lengths": [1]}) == "lengths and cores"
    assert told({"kind": "scaling", "apps": [1], "cores": [1], "lengths": [1]}) == "apps, lengths and cores"
    assert told({"kind": "quality", "dtype": "float32"}) == "float32"
    assert told({"kind": "quality", "dtype": None}) == "", "of a running daemon in llama.cpp"
    assert told({"kind": "roofline", "dtype": "float32"}) == ""


def test_pictures_of_limits_keep_their_names(program: Program) -> None:
    name = program("report_plots").name
    asked = {"pair": "tiny", "backend": "llama_cpp"}
    assert name({"kind": "roofline"} | asked) == "roofline-tiny-llama_cpp"
    assert name({"kind": "scaling", "apps": [1], "cores": [], "lengths": [1]} | asked) == (
        "scaling-tiny-llama_cpp-apps-lengths"
    )
    assert name({"kind": "quality", "pair": "tiny", "dtype": "float32"}) == "quality-tiny-float32"
