"""Tiny models in fp32, and drafts that agree with them always, now and then, or in other tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from draftd.models.base import Target
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.transformers import TransformersTarget
from tests.tiny import retokenize, write_tiny
from tests.tiny_gguf import write_gguf

MERGES = (("t", "h"), ("th", "e"), ("Ġ", "b"), ("q", "u"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exact")
    write_gguf(write_tiny(root / "target"), root / "same.gguf")
    write_gguf(write_tiny(root / "noisy", noise=0.15), root / "noisy.gguf")
    write_gguf(retokenize(root / "target", root / "shuffled"), root / "shuffled.gguf")
    write_gguf(retokenize(root / "noisy", root / "merged", MERGES), root / "merged.gguf")
    return root


@pytest.fixture(scope="module", params=["transformers", "llama_cpp"])
def target(request: pytest.FixtureRequest, files: Path) -> Iterator[Target]:
    if request.param == "transformers":
        loaded: Target = TransformersTarget.load(
            files / "target", slots=4, context=128, dtype="float32", device="cpu", threads=1
        )
    else:
        loaded = LlamaTarget.load(files / "same.gguf", slots=4, context=128, threads=1)
    yield loaded
    loaded.close()
