"""Tiny models that tests of several files read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from draftd.models.llama_cpp import LlamaTarget
from tests.models.gguf_families import write_gemma3
from tests.models.llama_rows import CONTEXT
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ (fp32), its weights as model.gguf and in 8 bits as q8.gguf, window.gguf of another family."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder / "model")
    write_gguf(folder / "model", folder / "model.gguf")
    write_gguf(folder / "model", folder / "q8.gguf", "q8_0")
    write_gemma3(folder / "window.gguf")
    return folder


@pytest.fixture(params=["model.gguf", "q8.gguf", "window.gguf"])
def target(folder: Path, request: pytest.FixtureRequest) -> Iterator[LlamaTarget]:
    target = LlamaTarget.load(folder / request.param, slots=4, context=CONTEXT, threads=1)
    yield target
    target.close()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("qwen2"))
