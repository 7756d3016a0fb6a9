"""GGUF to a transformers directory: the same weights and words, once, and again when damaged."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftd.ipc.errors import CorruptModel, EngineFailed, InvalidConfig, ModelNotFound, UnsupportedModel
from draftd.models import convert
from draftd.models.convert import conversions, converted_path, ensure_transformers
from draftd.models.fetch import Progress
from tests.tiny import END_OF_TEXT, IM_END, write_tiny
from tests.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"), "qwen2", tied=True)


@pytest.fixture(scope="module")
def gguf(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(original, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def steps() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def converted(gguf: Path, cache: Path, steps: list[Progress]) -> Path:
    return ensure_transformers(gguf, cache, "float32", steps.append)


def test_weights_words_and_endings_are_those_of_the_gguf(
    original: Path, converted: Path, steps: list[Progress]
) -> None:
    assert [step.done for step in steps] == [0, 1, 2, 3]
    model: Any = AutoModelForCausalLM.from_pretrained(converted)
    expected = AutoModelForCausalLM.from_pretrained(original)
    assert model.dtype == torch.float32
    tokens = torch.arange(1, 30)[None]  # [1, 29]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits)
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    tokenizer, known = AutoTokenizer.from_pretrained(converted), AutoTokenizer.from_pretrained(original)
    text = "naïve 12345\n\tcafé 🎉"
    assert tokenizer.encode(text) == known.encode(text)
    assert tokenizer.chat_template == known.chat_template
    assert model.generation_config.eos_token_id == [END_OF_TEXT, IM_END]
    assert "quantization_config" not in json.loads((converted / "config.json").read_text())


def test_a_second_call_returns_at_once(
    gguf: Path, cache: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "_convert_in_child", lambda *arguments: pytest.fail("converted again"))
    assert ensure_transformers(gguf, cache, "float32") == converted
    assert conversions(gguf, cache) == [converted]
    assert converted == converted_path(gguf, cache, "float32")
    assert [path.name for path in converted.parent.iterdir() if path.is_dir()] == [converted.name]


def test_a_damaged_directory_is_made_again(
    gguf: Path, cache: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good"
    shutil.copytree(converted, good)

    def again(gguf: Path, directory: Path, dtype: str, report: object) -> None:
        shutil.copytree(good, directory)

    monkeypatch.setattr(convert, "_convert_in_child", again)
    (converted / "model.safetensors").write_bytes(b"cut off")
    left = converted.with_name(f".{converted.name}.1.new")
    left.mkdir()
    assert ensure_transformers(gguf, cache, "float32") == converted
    assert (converted / "model.safetensors").read_bytes() == (good / "model.safetensors").read_bytes()
    assert not left.exists()


def test_what_cannot_be_converted_is_said_and_leaves_nothing(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"cannot read .*none\.gguf"):
        ensure_transformers(tmp_path / "none.gguf", tmp_path)
    text = tmp_path / "text.gguf"
    text.write_text("words")
    with pytest.raises(CorruptModel, match="is not a GGUF file"):
        ensure_transformers(text, tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf.read_bytes()[:5000])
    with pytest.raises(UnsupportedModel, match=r"transformers can't convert .*cut\.gguf: .*llama_cpp"):
        ensure_transformers(cut, tmp_path)
    two, three = (b"qwen2.block_count" + struct.pack("<II", 4, count) for count in (2, 3))
    lacking = tmp_path / "lacking.gguf"
    lacking.write_bytes(gguf.read_bytes().replace(two, three))
    with pytest.raises(UnsupportedModel, match=r"transformers can't convert .*lacking\.gguf: .*llama_cpp"):
        ensure_transformers(lacking, tmp_path)
    part = Path(shutil.copy(gguf, tmp_path / "tiny-00001-of-00002.gguf"))
    with pytest.raises(UnsupportedModel, match="it is one of several parts; set backend to llama_cpp"):
        ensure_transformers(part, tmp_path)
    assert [path for path in (tmp_path / "converted").iterdir() if path.is_dir()] == []


def test_a_failed_conversion_leaves_nothing(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, directory: Path, dtype: str, report: object) -> None:
        directory.mkdir()
        raise EngineFailed("killed")

    monkeypatch.setattr(convert, "_convert_in_child", fail)
    with pytest.raises(EngineFailed):
        ensure_transformers(gguf, tmp_path)
    assert [path for path in (tmp_path / "converted").iterdir() if path.is_dir()] == []


def test_a_conversion_that_was_killed_is_told_as_such(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\necho 'Converting: 45%' >&2\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(EngineFailed, match="failed: signal 9, often a lack of memory"):
        ensure_transformers(gguf, tmp_path / "cache")


CHILD = """
import sys, time
from draftd.models import convert

def wait(*arguments):
    print("at work", flush=True)
    time.sleep(3)
    print("and still", flush=True)

convert._convert = wait
sys.argv[1:] = ["tiny.gguf", "tiny", "float32", sys.argv[1]]
convert._main()
"""
PARENT = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"


def test_a_conversion_ends_with_the_process_that_waits_for_it() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        assert parent.stdout.read() == "", (
            "the end of the pipe that both held, and not the child's next words"
        )


def test_a_conversion_that_nobody_waits_for_any_more_does_not_begin(gguf: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    arguments = [str(gguf), str(made), "float32", "0"]  # no process has that id
    command = [sys.executable, "-m", "draftd.models.convert", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert not made.exists()


def test_a_client_only_install_is_told_what_is_missing(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InvalidConfig, match=r"torch, transformers, gguf is not installed: .*draftd\[engine\]"
    ):
        ensure_transformers(gguf, tmp_path)
