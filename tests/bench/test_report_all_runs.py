"""The table of all side-by-side runs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.bench.test_report_peers import RESULTS, cells, document, result

Program = Callable[[str], ModuleType]


def test_one_table_has_all_runs(program: Program) -> None:
    sampled = {"max_tokens": 11, "temperature": 0.8}
    second = document([result("draftd off", "1", 4.0), result("draftd auto", "1", 6.0)], sampling=sampled)
    again = document([result("draftd off", "1", 9.0)])  # of the first's kind: the first counts
    text = program("report_peers").summary([document(RESULTS), second, again])
    assert cells(text, "contender")[1:] == ["tiny, llama_cpp, greedy", "tiny, llama_cpp, temperature 0.8"]
    assert cells(text, "draftd auto")[1:] == ["2.8, 1.41x", "6.0, 1.50x"]
    assert cells(text, "hf generate plain")[1:] == ["5.0, 2.50x", "other target"]
    assert cells(text, "llama server draft model")[1:] == ["3.0, 1.50x", "not asked"]


def test_parts_of_a_comparison_are_sections_and_one_column(program: Program) -> None:
    peers = program("report_peers")
    slower = [result("draftd off", "1", 1.0), result("openvino genai GGUF plain", "1", 3.0)]
    first, second = document(RESULTS, part=None), document(slower, part=2)
    headings = [peers.section(each).partition("\n")[0] for each in (first, second)]
    title = "### Side by side: tiny, draftd's target in llama_cpp, greedy"
    assert headings == [title, f"{title}, part 2"]
    second["missing"]["openvino genai GGUF draft model"] = "RuntimeError: no"
    third = document([result("openvino genai GGUF draft model", "1", 1.0)], pair="other")
    text = peers.summary([first, second, third])
    assert cells(text, "contender")[1] == "tiny, llama_cpp, greedy"
    assert cells(text, "draftd off")[1] == "2.0, 1.00x"
    assert cells(text, "openvino genai GGUF plain")[1] == "3.0, 3.00x", "over its own run's target"
    assert cells(text, "openvino genai GGUF draft model")[1] == "failed", "in the part that asked it"


def test_runs_that_asked_otherwise_are_columns_of_their_own(program: Program) -> None:
    sampled = {"max_tokens": 32, "temperature": 0.0}
    here: dict[str, Any] = {"context": 2048, "asked": 13, "prompts": "a.jsonl"}
    others: list[dict[str, Any]] = [here, here, here | {"context": 4096}, here | {"prompts": "b.jsonl"}]
    runs = [document(RESULTS), document(RESULTS, sampling=sampled), document(RESULTS, backend="transformers")]
    runs += [document(RESULTS, **other) for other in others]
    text = program("report_peers").summary(runs)
    assert cells(text, "contender")[1:] == [
        "tiny, llama_cpp, greedy, 11 tokens",
        "tiny, llama_cpp, greedy, 32 tokens",
        "tiny, transformers, greedy",
        "tiny, llama_cpp, greedy, 11 tokens, context 2048, 13 prompts of a.jsonl",
        "tiny, llama_cpp, greedy, 11 tokens, context 4096, 13 prompts of a.jsonl",
        "tiny, llama_cpp, greedy, 11 tokens, context 2048, 13 prompts of b.jsonl",
    ]


def test_a_cell_without_figures_says_why(program: Program) -> None:
    summary = program("report_peers").summary
    modes = ("plain", "draft model", "draft model tuned", "n-gram mod")
    every = document([result(f"llama server {mode}", "1", 2.0) for mode in modes])

    def told(missing: dict[str, str]) -> list[str]:
        other = document([result("draftd off", "1", 2.0)], pair="other", missing=missing)
        text = summary([every, other])
        return [cells(text, f"llama server {mode}")[2] for mode in modes]

    reasons = {"draft model": "RuntimeError: gone", "n-gram mod": "no such form: this build has none"}
    assert told({f"llama server {mode}": reason for mode, reason in reasons.items()}) == [
        "not asked",
        "failed",
        "not asked",  # though its name begins as that of one that failed
        "no such form",
    ]
    assert told({"llama server": "ended with status 3"}) == ["failed"] * 4
    assert told({"llama server draft model": "it has none"})[1] == "failed", "an older file"
