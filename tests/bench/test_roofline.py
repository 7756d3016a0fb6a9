from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from tests.daemon.test_bench import answer
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

Program = Callable[[str], ModuleType]


def test_a_pass_reads_all_weights_but_an_embedding_that_is_only_looked_up(
    program: Program, tmp_path: Path
) -> None:
    files = program("pass_bytes")
    model = write_tiny(tmp_path / "own")
    sizes = {name: tensor.nbytes for name, tensor in load_file(model / "model.safetensors").items()}
    expected = sum(sizes.values()) - sizes["model.embed_tokens.weight"]
    assert files.safetensors_bytes(model) == expected
    assert files.gguf_bytes(write_gguf(model, tmp_path / "own.gguf")) == expected
    tied = write_tiny(tmp_path / "tied", tied=True)
    whole = sum(tensor.nbytes for tensor in load_file(tied / "model.safetensors").values())
    assert files.safetensors_bytes(tied) == whole
    assert files.gguf_bytes(write_gguf(tied, tmp_path / "tied.gguf")) == whole
    halved = {name: tensor.bfloat16() for name, tensor in load_torch(tied / "model.safetensors").items()}
    save_torch(halved, tied / "model.safetensors")
    assert files.safetensors_bytes(tied) == whole // 2


def test_what_passes_and_drafted_tokens_took(program: Program) -> None:
    roofline = program("roofline")
    # Of each answer's rounds the first is the prompt's.
    answers = [answer(rounds=3, drafted=4, accepted=2, models=0.8), answer(rounds=4, drafted=6, models=1.2)]
    assert roofline.round_seconds(answers) == pytest.approx((0.4 + 0.6) / 5)
    assert roofline.drafted_seconds(answers) == pytest.approx((0.2 + 0.3) / 10)
    assert roofline.reach(answers) == [2 / 5] + [0.0] * 15


def test_bounds_by_hand(program: Program) -> None:
    roofline = program("roofline")
    document = {
        "bytes": {"target": 1000, "draft": 100},
        "bandwidth": 10_000.0,
        "reached": [0.9, 0.6, 0.0],
        "pass_seconds": {"1": 0.2, "3": 0.3},
        "plain_seconds": 0.2,
        "drafted_seconds": 0.04,
    }
    found = roofline.bounds(document)
    # Two tokens: 1 + 0.9 + 0.6 in 0.3 + 2 x 0.04 seconds, where the target alone takes 0.2 for one.
    assert (found["best"], found["length"]) == (pytest.approx(2.5 * 0.2 / 0.38), 2)
    # At the memory's speed: 0.1 s a pass, 0.01 a drafted token, however many rows are checked.
    assert found["free"] == pytest.approx(2.5 * 0.1 / 0.12)
    assert roofline.interpolated({"1": 0.2, "3": 0.3}, 2, 0.2) == pytest.approx(0.25)
    assert roofline.interpolated({"4": 0.1}, 2, 0.2) == 0.2


def test_a_pair_without_a_draft_has_a_table(program: Program) -> None:
    roofline = program("roofline")
    document = {
        "threads": 2,
        "bandwidth": 1e10,
        "bytes": {"target": 10**9, "draft": 0},
        "reached": [0.0] * 8,
        "pass_seconds": {"1": 0.2},
        "plain_seconds": 0.2,
        "drafted_seconds": 0.0,
        "speedup": {"model:8": 1.0, "auto": 0.99},
        "pings": {},
    }
    text = "\n".join(roofline.lines(document))
    assert "| target | 1000 | 100.0 | 200.0 | 50% |" in text
    assert "| draft |" not in text
    assert "(0) | 1.00x |" in text


@pytest.mark.parametrize(
    ("variables", "backend", "gpu"),
    [
        ({}, "transformers", True),
        ({}, "llama_cpp", False),
        ({"DRAFTD_DEVICE": "cpu"}, "transformers", False),
        ({"DRAFTD_DEVICE": "cpu", "DRAFTD_GPU_LAYERS": "9"}, "llama_cpp", True),
    ],
)
def test_the_processors_memory_is_no_measure_of_a_gpu(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    backend: str,
    gpu: bool,
) -> None:
    roofline = program("roofline")
    monkeypatch.setattr(roofline.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DRAFTD_CONFIG", os.devnull)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert roofline.on_gpu(backend, roofline.load_settings(None)) == gpu


def test_a_load_that_ends_is_no_load(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    roofline = program("roofline")
    monkeypatch.setattr(roofline, "READER", "pass")
    with pytest.raises(RuntimeError, match="ended before its first token"), roofline.reading("ipc:///none"):
        pass
    monkeypatch.setattr(roofline, "READER", "print('going', flush=True)")

    def ended(reader: subprocess.Popen[bytes]) -> int | None:
        return reader.wait(20)

    monkeypatch.setattr(subprocess.Popen, "poll", ended)
    with (
        pytest.raises(RuntimeError, match="ended while it was measured under"),
        roofline.reading("ipc:///none"),
    ):
        pass
