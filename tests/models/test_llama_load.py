"""Loading a model in llama.cpp: its progress, its context, and files that cannot be used."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from gguf import GGUFWriter

from draftd.ipc.errors import CorruptModel, ModelNotFound, UnsupportedModel
from draftd.models.llama_cpp import LlamaTarget
from tests.models.gguf_families import write, write_mamba


def test_the_context_is_no_longer_than_trained(folder: Path) -> None:
    target = LlamaTarget.load(folder / "model.gguf", slots=1, context=5000, threads=1)
    assert target.context == 1024
    target.close()
    target.close()


def test_progress_is_reported(folder: Path) -> None:
    seen: list[float] = []
    LlamaTarget.load(folder / "q8.gguf", slots=1, context=64, threads=1, report=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_what_a_report_raises_ends_the_load(folder: Path) -> None:
    def report(_: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        LlamaTarget.load(folder / "model.gguf", slots=1, context=64, threads=1, report=report)


# ---- files that cannot be used


def load(path: Path) -> None:
    LlamaTarget.load(path, slots=1, context=64, threads=1).close()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no model file .*gone.gguf: pull"):
        load(tmp_path / "gone.gguf")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot read the model file"):
        load(tmp_path)


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(CorruptModel, match="is not a GGUF file: remove it"):
        load(tmp_path / "page.gguf")


def test_garbage_after_the_magic(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + random.Random(0).randbytes(400))
    with pytest.raises(CorruptModel, match=r"bad.gguf is damaged or incomplete: remove it .*\("):
        load(tmp_path / "bad.gguf")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file(folder: Path, tmp_path: Path, share: float) -> None:
    whole = (folder / "model.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptModel, match=r"half.gguf is damaged or incomplete"):
        load(tmp_path / "half.gguf")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "new.gguf", "tomorrow")
    writer.add_block_count(1)
    write(writer, {"token_embd.weight": np.zeros((32, 32), np.float32)})
    with pytest.raises(UnsupportedModel, match=r"does not know the model in .*new.gguf: .*'tomorrow'"):
        load(tmp_path / "new.gguf")


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UnsupportedModel, match=r"GiB of memory and 0\.0 GiB are free"):
        load(folder / "model.gguf")


def test_layers_on_a_gpu_need_no_memory_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_on_gpu() -> None:
        LlamaTarget.load(folder / "model.gguf", slots=1, context=64, threads=1, gpu_layers=-1).close()

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("llama_cpp.llama_supports_gpu_offload", lambda: False)
    with pytest.raises(UnsupportedModel, match="are free"):  # it ignores `gpu_layers`
        load_on_gpu()
    monkeypatch.setattr("llama_cpp.llama_supports_gpu_offload", lambda: True)
    load_on_gpu()


def test_a_recurrent_model_is_refused(tmp_path: Path) -> None:
    write_mamba(tmp_path / "mamba.gguf")
    with pytest.raises(UnsupportedModel, match=r"mamba.gguf cannot be used with speculation: its recurrent"):
        load(tmp_path / "mamba.gguf")
