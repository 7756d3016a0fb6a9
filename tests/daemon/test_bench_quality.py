from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from draftd.daemon import bench_latency, bench_quality, bench_scores
from draftd.daemon.bench_scores import Item, Said
from draftd.daemon.bench_table import Measured
from draftd.daemon.settings import load
from tests.daemon.conftest import Serve
from tests.daemon.test_bench import answer

EXAMPLE = [
    Item("t", "translation", "?", ["Der Hund schläft im Garten heute.", "Heute schläft der Hund im Garten."]),
    Item("s", "summarisation", "?", ["The cat sat on the mat.", "A mat was under a cat."]),
    Item("q", "qa", "?", ["two eggs", "2"]),
]


def test_the_references_themselves_are_perfect_and_nonsense_is_not() -> None:
    for which in (0, 1):  # any of them
        right = bench_scores.scores(EXAMPLE, [item.references[which] for item in EXAMPLE])
        assert right == pytest.approx(dict.fromkeys(bench_scores.SCORES, 100.0))
    wrong = bench_scores.scores(EXAMPLE, ["xyz", "xyz", "xyz"])
    assert all(score < 5 for score in wrong.values())


def test_rouge_stems_words_and_its_l_minds_their_order() -> None:
    assert bench_scores.rouge_scores([("dogs run", ["run dog"])]) == pytest.approx(
        {"ROUGE-1": 100.0, "ROUGE-L": 50.0}
    )


def test_short_answers_count_as_in_squad() -> None:
    assert bench_scores.normalised("The  Two, Eggs!") == "two eggs"
    # 2 of 4 words right, 2 of 3 found: F1 = 2 * 2 / (4 + 3)
    assert bench_scores.token_f1("two eggs and milk", "two big eggs") == pytest.approx(4 / 7)
    assert bench_scores.token_f1("", "two eggs") == 0.0


def test_where_two_answers_part() -> None:
    alone = Said("ab", [1, 2, 3], [{1: -0.1}, {2: -0.5, 9: -0.75}, {3: -0.1}])
    assert bench_scores.parting(alone, Said("ab", [1, 2, 3])) is None
    assert bench_scores.parting(alone, Said("ac", [1, 9, 4])) == (1, 0.25)
    assert bench_scores.parting(alone, Said("ac", [7, 2, 3])) == (0, None)
    assert bench_scores.parting(alone, Said("a", [1, 2])) == (2, None)
    assert bench_scores.parting(Said("a", [1]), Said("b", [2])) == (0, None)  # nothing was told of it
    rows = bench_scores.rows(EXAMPLE[:1], {"target": [alone], "target, drafting": [Said("ac", [1, 9])]})
    assert [row.same_as_own for row in rows] == [None, 0]
    (sentence,) = bench_scores.divergences(rows)
    assert "1 of 1 answers differ, first at token 1 (median)" in sentence
    assert "0.250 nats" in sentence


def test_how_contenders_compare() -> None:
    alone = [
        Said(name, [1], [{1: -0.5, 2: -0.5 - margin}])
        for name, margin in (("a", 0.0), ("b", 1.0), ("c", 3.0))
    ]
    drafting = [alone[0], Said("x", [2]), Said("y", [2])]
    rows = bench_scores.rows(
        EXAMPLE, {"one": alone, "one, drafting": drafting, "two": drafting, "two, drafting": drafting}
    )
    assert [(row.same_as_first, row.same_as_own) for row in rows] == [(3, None), (1, 1), (1, None), (1, 3)]
    assert [bench_scores.cells(row)[-2:] for row in rows[:2]] == [["3/3", "-"], ["1/3", "1/3"]]
    first, second = bench_scores.divergences(rows)
    assert "2 of 3 answers differ" in first
    assert "2.000 nats at the median and 3.000 at most" in first
    assert second == "two, drafting: no answer differs from the target's alone."
    (beyond,) = bench_scores.divergences(
        bench_scores.rows(EXAMPLE[:1], {"t": [Said("a", [1])], "t, drafting": [Said("b", [2])]})
    )
    assert "the other token was not among the likeliest" in beyond


def test_what_ships_is_whole() -> None:
    items = bench_quality.read_items(None)
    assert len({item.id for item in items}) == len(items) >= 36
    assert {item.task for item in items} == set(bench_scores.TASKS)
    assert all(item.text and item.references for item in items)


def test_a_run_against_a_daemon(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(draft="same.gguf")
    out = tmp_path / "out.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "draftd.daemon.cli", "bench", "--quality", "--endpoint", daemon.endpoint),
            *("--per-category", "1", "--max-tokens", "12", "--json", str(out)),
        ],
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "no answer differs from the target's alone" in done.stdout
    report = json.loads(out.read_text("utf-8"))
    assert [row["name"] for row in report["rows"]] == [
        "transformers float32",
        "transformers float32, drafting",
    ]
    assert report["items"] == {"translation": 1, "summarisation": 1, "qa": 1}
    assert report["rows"][1]["same_as_own"] == 3
    assert set(report["rows"][0]["scores"]) == set(bench_scores.SCORES)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['sacrebleu'] = None; from draftd.daemon.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide, "bench", "--quality"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'draftd[quality]'" in done.stderr


def test_a_draft_alone_is_a_pair_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from draftd.models.catalog import load_catalog

    own = tmp_path / "own.toml"
    monkeypatch.setenv("DRAFTD_CATALOG", str(own))  # which is not there
    shipped = load_catalog().pair("smollm2")
    name, catalog = bench_quality.draft_alone(shipped, tmp_path)
    assert load_catalog(catalog).pair(name).target == shipped.draft
    own.write_text('[models.mine]\npath = "/nowhere/mine.gguf"\n[pairs.p]\ntarget = "mine"\ndraft = "mine"\n')
    name, catalog = bench_quality.draft_alone(load_catalog().pair("p"), tmp_path)
    pair = load_catalog(catalog).pair(name)
    assert (pair.target.name, pair.draft, pair.backend) == ("mine", None, "llama_cpp")


def test_what_is_asked_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.toml"
    (tmp_path / "folder").mkdir()
    own.write_text(
        f'[models.file]\npath = "/nowhere/mine.gguf"\n[models.folder]\npath = "{tmp_path}/folder"\n'
        '[pairs.both]\ntarget = "file"\ndraft = "file"\n[pairs.alone]\ntarget = "folder"\n'
    )
    monkeypatch.setenv("DRAFTD_CATALOG", str(own))

    def forms(pair: str, endpoint: str | None = None) -> list[tuple[str, str | None]]:
        with contextlib.ExitStack() as stack:
            found = bench_quality.daemons(pair, endpoint, None, stack)
        return [(variant.name, variant.variables.get("DRAFTD_BACKEND")) for variant, _ in found]

    transformers = (f"transformers {load(None).dtype}", "transformers")
    draft = ("draft alone", "llama_cpp")
    assert forms("both") == [transformers, ("llama.cpp", "llama_cpp"), draft]
    assert forms("alone") == [transformers]  # of a folder llama.cpp has no form
    assert forms("both", "ipc:///a.sock") == [("", None)]


def test_percentiles_of_the_waits() -> None:
    assert bench_latency.percentile([float(value) for value in range(1, 201)], 0.95) == 190.0
    assert bench_latency.percentile([3.0], 0.99) == 3.0
    found = bench_latency.latencies([Measured("1", "qa", {"off": [answer(first=0.5), answer(first=1.5)]})])
    assert found["off"]["first token"] == {"p50": 0.5, "p95": 1.5, "p99": 1.5}
    assert "any gap" not in found["off"]
    waits = [((0.1, 0.3), 0.6), ((0.2, 0.9), 0.7)]
    answers = [replace(answer(first=0.5), gaps=gaps, sentence_seconds=end) for gaps, end in waits]
    latency = bench_latency.latency(answers)
    assert {kind: found["p50"] for kind, found in latency.items()} == {
        "first token": 0.5,
        "first sentence": 0.6,
        "longest gap": 0.3,
        "any gap": 0.2,
    }
    assert bench_latency.cell({"p50": 0.0124, "p99": 1.5}) == "12/1500"
    assert bench_latency.cell(None) == "-"
