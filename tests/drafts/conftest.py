"""A tiny model in llama.cpp, and what it says of a text when nothing is cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from draftd.models.base import Span
from draftd.models.llama_cpp import LlamaTarget
from tests.drafts.contexts import CONTEXT, Row
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return write_gguf(write_tiny(folder / "model"), folder / "model.gguf")


@pytest.fixture
def model(gguf: Path) -> Iterator[LlamaTarget]:
    model = LlamaTarget.load(gguf, slots=4, context=CONTEXT, threads=1)
    yield model
    model.close()


@pytest.fixture
def reference(gguf: Path) -> Iterator[Callable[[Sequence[int]], Row]]:
    """The last row of a fresh prefill, by a model of its own."""
    model = LlamaTarget.load(gguf, slots=1, context=CONTEXT, threads=1)

    def row(tokens: Sequence[int]) -> Row:
        model.truncate(0, 0)
        last: Row = model.forward([Span(0, 0, list(tokens), 1)])[0][0].copy()
        return last

    yield row
    model.close()
