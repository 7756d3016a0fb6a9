from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from draftd.daemon import bench_forms, bench_latency, bench_quality, bench_scores, budget
from draftd.daemon.bench_scores import Item, Said
from draftd.daemon.bench_table import Measured
from draftd.daemon.cli import app
from draftd.daemon.private import STEADY
from draftd.daemon.settings import Settings, load
from draftd.ipc.errors import InvalidRequest, ModelNotFound, OutOfMemory
from draftd.models.catalog import load_catalog
from draftd.models.gguf_tensors import kind_name, read_tensors
from draftd.models.quantize import BY_NAME, quantize
from tests.daemon.commands import started_daemons
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
    drafting = [alone[0], Said("x", [2], accepted=1), Said("y", [2], accepted=1)]
    rows = bench_scores.rows(
        EXAMPLE, {"one": alone, "one, drafting": drafting, "two": drafting, "two, drafting": drafting}
    )
    assert [(row.same_as_first, row.same_as_own) for row in rows] == [(3, None), (1, 1), (1, None), (1, 3)]
    assert [bench_scores.cells(row)[-2:] for row in rows[:2]] == [["3/3", "-"], ["1/3", "1/3"]]
    first, second = bench_scores.divergences(rows)
    assert "2 of 3 answers differ" in first
    assert "2.000 nats at the median and 3.000 at most" in first
    assert second == (
        "two, drafting (2 of 3 tokens were drafted): no answer differs from the target's alone."
    )
    (beyond,) = bench_scores.divergences(
        bench_scores.rows(EXAMPLE[:1], {"t": [Said("a", [1])], "t, drafting": [Said("b", [2])]})
    )
    assert beyond.endswith("(median); in 1 the other token was not among the likeliest.")
    longer = {"t": [alone[0]] * 2, "t, drafting": [Said("x", [2]), Said("ab", [1, 5])]}
    (ended,) = bench_scores.divergences(bench_scores.rows(EXAMPLE[:2], longer))
    assert "2 of 2 answers differ" in ended
    assert ended.endswith("0.000 at most; in 1 one of the two ended there, whose margin is not told.")


def test_what_ships_is_whole() -> None:
    items = bench_quality.read_items(None)
    assert len({item.id for item in items}) == len(items) >= 36
    assert {item.task for item in items} == set(bench_scores.TASKS)
    assert all(item.text and item.references for item in items)


def test_a_run_against_a_daemon(serve: Serve, tmp_path: Path) -> None:
    daemon = serve(draft="same.gguf")
    daemon.client().unload()  # as after half an hour without a request
    out = tmp_path / "out.json"
    command = [
        *(sys.executable, "-m", "draftd.daemon.cli", "bench", "--quality", "--endpoint", daemon.endpoint),
        *("--per-category", "1", "--max-tokens", "12", "--json", str(out)),
    ]
    wide: dict[str, Any] = {"env": os.environ | {"COLUMNS": "200"}, "capture_output": True, "text": True}
    other = subprocess.run([*command, "--pair", "smollm2"], **wide, timeout=100)
    assert (other.returncode, out.exists()) == (4, False)
    assert other.stderr == "draftd: the daemon serves tiny, not smollm2\n"
    done = subprocess.run(command, **wide, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "no answer differs from the target's alone" in done.stdout
    report = json.loads(out.read_text("utf-8"))
    assert [row["name"] for row in report["rows"]] == [
        "transformers float32",
        "transformers float32, drafting",
    ]
    assert (report["pair"], report["dtype"]) == ("tiny", "float32")
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


@pytest.fixture
def own(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Pairs of tiny models: of a GGUF file, which is its own draft, and of a transformers folder."""
    catalog = tmp_path / "own.toml"
    catalog.write_text(
        f'[models.file]\npath = "{tiny_files}/same.gguf"\n[models.folder]\npath = "{tiny_files}/target"\n'
        '[models.gone]\npath = "/nowhere/mine.gguf"\n[pairs.gone]\ntarget = "gone"\n'
        '[pairs.both]\ntarget = "file"\ndraft = "file"\n[pairs.alone]\ntarget = "folder"\n'
    )
    monkeypatch.setenv("DRAFTD_CATALOG", str(catalog))
    monkeypatch.setenv("DRAFTD_CACHE_DIR", str(tmp_path / "cache"))
    return load(None)


def test_the_forms_of_a_pair(own: Settings, tmp_path: Path) -> None:
    def forms(pair: str, *wanted: str) -> list[tuple[str, str, str]]:
        found, _ = bench_forms.forms(load_catalog().pair(pair), own, wanted, tmp_path)
        return [(form.name, form.pair, form.variables["DRAFTD_BACKEND"]) for form in found]

    transformers = f"transformers {own.dtype}"
    file = [
        (transformers, "both", "transformers"),
        ("llama.cpp", "both", "llama_cpp"),
        ("target as Q4_0", "both-Q4_0", "llama_cpp"),
        ("draft alone", "both-draft-alone", "llama_cpp"),
    ]
    assert forms("both") == file
    assert forms("both", "draft", "Q4_0") == [file[3], file[2]]
    assert forms("alone") == [(transformers, "alone", "transformers")]  # of a folder llama.cpp has no form
    _, left_out = bench_forms.forms(load_catalog().pair("both"), own, (), tmp_path)
    assert [line.partition(":")[0] for line in left_out] == ["Q3_K_M is left out", "Q2_K is left out"]
    assert "rows of 64 do not divide into Q6_K's blocks of 256" in left_out[0]
    with pytest.raises(InvalidRequest, match="--form Q9: there are transformers, llama_cpp, Q4_0"):
        forms("both", "Q9")
    with pytest.raises(
        InvalidRequest, match="alone has none of these forms: Q4_0 is left out: the target is no"
    ):
        forms("alone", "Q4_0", "draft")
    with pytest.raises(ModelNotFound, match="draftd models pull gone"):
        forms("gone")


def test_a_form_is_a_pair_of_the_catalog_and_its_file_is_made_and_removed(
    own: Settings, tmp_path: Path
) -> None:
    (form, alone), _ = bench_forms.forms(load_catalog().pair("both"), own, ("Q4_0", "draft"), tmp_path)
    catalog = load_catalog(Path(form.variables["DRAFTD_CATALOG"]))
    assert (catalog.pair(alone.pair).target.name, catalog.pair(alone.pair).draft) == ("file", None)
    quantised = catalog.pair(form.pair)
    assert (quantised.draft, quantised.backend) == (None, "llama_cpp")
    assert quantised.target.path is not None
    with bench_forms.made(form):
        kinds = {kind_name(each.kind) for each in read_tensors(quantised.target.path) if each.is_matrix}
        assert kinds == {"Q4_0"}
    assert not quantised.target.path.exists()


def test_a_quantised_form_is_smaller_than_what_came(own: Settings, tmp_path: Path, tiny_files: Path) -> None:
    quantize(tiny_files / "same.gguf", tmp_path / "small.gguf", BY_NAME["Q4_0"])
    catalog = tmp_path / "own.toml"
    catalog.write_text(f'[models.s]\npath = "{tmp_path}/small.gguf"\n[pairs.small]\ntarget = "s"\n')
    with pytest.raises(InvalidRequest, match="Q4_0 is left out: it would not be smaller than the file is"):
        bench_forms.forms(load_catalog().pair("small"), own, ("Q4_0",), tmp_path)


def test_quantised_targets_are_asked_and_leave_nothing_behind(own: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "draftd.daemon.cli", "bench", "--quality", "--pair", "both"),
            *("--form", "llama_cpp", "--form", "Q4_0", "--form", "Q2_K"),
            *("--per-category", "1", "--max-tokens", "8", "--json", str(out)),
        ],
        env=os.environ | {"COLUMNS": "200", "DRAFTD_CONTEXT": "512", "DRAFTD_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Q2_K is left out: rows of 64" in done.stderr
    report = json.loads(out.read_text("utf-8"))
    names = ["llama.cpp", "llama.cpp, drafting", "target as Q4_0"]
    assert [row["name"] for row in report["rows"]] == names
    assert set(report["said"]) == set(names)
    assert list((tmp_path / "cache" / "tuned").iterdir()) == []


def test_a_form_that_does_not_fit_is_left_out(
    own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "300", "DRAFTD_CONTEXT": "512", "DRAFTD_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    both = load_catalog().pair("both")
    plenty = budget.Room(10**12, 0)
    _, llama_cpp = budget.asked(both, load(None), plenty)
    monkeypatch.setattr(budget, "measure_room", lambda _: budget.Room(llama_cpp.memory, 0))
    asked = ["bench", "--quality", "--pair", "both", "--per-category", "1", "--max-tokens", "4"]
    done = CliRunner().invoke(app, [*asked, "--form", "transformers", "--form", "llama_cpp"])
    assert done.exit_code == 0, done.output
    assert f"transformers {own.dtype} is left out: both needs" in done.stderr
    assert "llama.cpp, drafting" in done.stdout
    alone = CliRunner().invoke(app, [*asked, "--form", "transformers"])
    assert isinstance(alone.exception, OutOfMemory)
    monkeypatch.setenv("DRAFTD_CHECK_MEMORY", "false")
    (form,), _ = bench_forms.forms(both, own, ("transformers",), tmp_path)
    bench_forms.must_fit(form, load(None))


def test_its_own_daemons_are_steady_and_have_learnt_nothing(
    own: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = started_daemons(monkeypatch, bench_quality)
    (form,), _ = bench_forms.forms(load_catalog().pair("both"), own, ("llama_cpp",), tmp_path)
    with bench_quality.daemon(form, None, None, Console(stderr=True)) as where:
        assert where == "ipc://here"
    assert heard == [("both", STEADY | {"DRAFTD_BACKEND": "llama_cpp"}, True)]


def test_a_form_of_a_running_daemon_cannot_be_chosen() -> None:
    asked = ["bench", "--quality", "--endpoint", "ipc:///nowhere.sock", "--form", "Q4_0"]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, InvalidRequest)
    assert "leave out --endpoint" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quality", "--prompts", "p.jsonl", "--again"], "once: leave out --prompts, --again"),
        (["--quality", "--speculate", "auto", "--ping", "9"], "once: leave out --speculate, --ping"),
        (["--quality", "--temperature", "0", "--repeat", "1"], "once: leave out --temperature, --repeat"),
        (["--prompts", "p.jsonl", "--form", "draft"], "--form says what --quality asks"),
    ],
)
def test_an_option_that_would_not_be_heeded_is_refused(options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["bench", *options])
    assert isinstance(done.exception, InvalidRequest)
    assert said in str(done.exception)


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
