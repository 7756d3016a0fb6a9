"""Pairs of the real daemon: a target in llama.cpp, drafts of other tokenizers, files that do not load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.conftest import Daemon, Serve
from tests.tiny import retokenize, write_tiny
from tests.tiny_gguf import write_gguf

PROMPT = "def add(a, b):"
# so many that less than nine tenths of a text's tokens are letters
PAIRS = [
    (one, other) for one, other in ("Ġt", "Ġa", "in", "er", "on", "re", "at", "en", "es", "or", "Ġs", "ou")
]


def test_llama_cpp_as_the_target(serve: Serve) -> None:
    client = serve(target="same.gguf", backend="llama_cpp").client()
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.7, "seed": 5}
    drafted = client.complete(**options, speculate="model:6")
    plain = client.complete(**options, speculate=False)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.accepted > 0


def test_a_draft_with_another_tokenizer_drafts_by_shared_tokens(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    other = retokenize(tiny_files / "target", tmp_path / "other")
    daemon = serve(draft=write_gguf(other, tmp_path / "other.gguf"))
    assert daemon.status().engine["tokenizers"] == (
        "different tokenizers: drafting by shared tokens (100 % of a sample text's tokens are shared)"
    )
    answers_are_the_targets(daemon)


def test_a_draft_that_shares_too_few_tokens_drafts_by_text(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    target = retokenize(tiny_files / "target", tmp_path / "target", PAIRS)
    daemon = serve(target=target)
    said = daemon.status().engine["tokenizers"]
    assert said.startswith("different tokenizers: drafting by text (")
    answers_are_the_targets(daemon)


def answers_are_the_targets(daemon: Daemon) -> None:
    client = daemon.client()
    accepted = 0
    for seed in range(3):
        options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0.7, "seed": seed}
        drafted = client.complete(**options, speculate="model:5")
        alone = client.complete(**options, speculate=False, cache_prompt=False)
        assert drafted.tokens == alone.tokens
        accepted += drafted.stats.accepted
    assert accepted > 0


def test_an_incompatible_draft_leaves_the_target_alone_and_says_so(
    serve: Serve, tiny_files: Path, tmp_path: Path
) -> None:
    other = write_tiny(tmp_path / "other")
    tokenizer = (other / "tokenizer.json").read_text("utf-8")
    lacking = tokenizer.replace('"x": 120', '"xx": 120')
    assert lacking != tokenizer
    (other / "tokenizer.json").write_text(lacking, "utf-8")
    write_gguf(other, tmp_path / "other.gguf")
    daemon = serve(draft=tmp_path / "other.gguf")
    refused = daemon.status().engine["draft_refused"]
    assert "can't spell an ordinary text" in refused
    assert len(daemon.client().complete(prompt="ab", max_tokens=5).tokens) == 5


@pytest.mark.parametrize(
    ("break_it", "status", "sentence"),
    [
        (lambda root: (root / "gone.gguf", "target"), 4, "there is no"),
        (lambda root: ("draft.gguf", root / "gone"), 4, "there is no"),
        (lambda root: (_write(root / "bad.gguf", b"GGUF" + os.urandom(200)), "target"), 4, "bad.gguf"),
        (lambda root: (_write(root / "no.gguf", b"hello"), "target"), 4, "no.gguf"),
    ],
)
def test_a_pair_that_cannot_load_ends_the_daemon_with_a_sentence(
    serve: Serve, tmp_path: Path, break_it: Any, status: int, sentence: str
) -> None:
    draft, target = break_it(tmp_path)
    daemon = serve(draft=draft, target=target, wait=False)
    assert daemon.process.wait(60) == status
    last = daemon.lines.read_text().strip().splitlines()[-1]
    assert last.startswith("draftd: ")
    assert sentence in last


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
