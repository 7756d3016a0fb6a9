"""Writing a GGUF in other types, on a tiny model whose rows are 64 and 128 wide."""

from __future__ import annotations

import resource
import shutil
from collections import Counter
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from draftd.ipc.errors import CorruptModel, DiskFull, InvalidConfig, ModelNotFound, UnsupportedModel
from draftd.models.base import Span
from draftd.models.gguf_tensors import Tensor, kind_name, read_tensors
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.quantize import BY_NAME, Recipe, expected_bytes, quantize, unfit
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

TOKENS = list(range(40, 72))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantize")
    return write_gguf(write_tiny(root / "model"), root / "model.gguf")


def kinds(path: Path) -> dict[str, str]:
    return {tensor.name: kind_name(tensor.kind) for tensor in read_tensors(path) if tensor.is_matrix}


def rows(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    model = LlamaTarget.load(path, slots=1, context=64, threads=1)
    try:
        return model.forward([Span(0, 0, TOKENS, len(TOKENS))])[0].copy()
    finally:
        model.close()


def test_the_header_is_read_as_it_was_written(source: Path) -> None:
    tensors = {tensor.name: tensor for tensor in read_tensors(source)}
    assert tensors["blk.1.ffn_down.weight"] == Tensor("blk.1.ffn_down.weight", (128, 64, 1, 1), 0)
    assert tensors["token_embd.weight"].elements == 64 * 272
    assert not tensors["output_norm.weight"].is_matrix
    assert set(kinds(source).values()) == {"F32"}


@pytest.mark.parametrize(
    ("name", "head", "body"),
    [("Q4_0", "Q4_0", "Q4_0"), ("Q4_0+Q8_0", "Q8_0", "Q4_0"), ("Q5_0", "Q5_0", "Q5_0"), ("Q8_0",) * 3],
)
def test_every_matrix_gets_its_type(source: Path, tmp_path: Path, name: str, head: str, body: str) -> None:
    out = tmp_path / "deep" / "out.gguf"
    quantize(source, out, BY_NAME[name])
    written = kinds(out)
    assert written.pop("output.weight") == head
    assert set(written.values()) == {body}
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]
    size = expected_bytes(read_tensors(source), BY_NAME[name])
    header = source.stat().st_size - sum(4 * tensor.elements for tensor in read_tensors(source))
    assert size <= out.stat().st_size <= size + 1.2 * header


def test_eight_bits_say_almost_what_the_source_says(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "q8.gguf", BY_NAME["Q8_0"])
    quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", BY_NAME["Q4_0"], threads=2)  # already quantised once
    exact, eight, four = (rows(path) for path in (source, tmp_path / "q8.gguf", tmp_path / "q4.gguf"))
    spread = float(exact.std())
    assert 0 < np.abs(eight - exact).mean() < 0.1 * spread
    assert np.abs(eight - exact).mean() < np.abs(four - exact).mean() < spread


def test_an_embedding_that_is_the_head_too_gets_the_heads_type(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tied", tied=True)
    source = write_gguf(tmp_path / "tied", tmp_path / "tied.gguf")
    assert "output.weight" not in kinds(source)
    quantize(source, tmp_path / "out.gguf", BY_NAME["Q4_0+Q8_0"])
    assert Counter(kinds(tmp_path / "out.gguf").values())["Q8_0"] == 1
    assert kinds(tmp_path / "out.gguf")["token_embd.weight"] == "Q8_0"


@pytest.mark.parametrize(("name", "body"), [("Q3_K_M", "Q3_K"), ("Q2_K", "Q2_K")])
def test_llama_cpps_own_mixes_give_some_matrices_wider_types(tmp_path: Path, name: str, body: str) -> None:
    source = write_gguf(write_tiny(tmp_path / "wide", hidden=256), tmp_path / "wide.gguf")
    quantize(source, tmp_path / "out.gguf", BY_NAME[name])
    written = kinds(tmp_path / "out.gguf")
    assert (written.pop("output.weight"), written.pop("token_embd.weight")) == ("Q6_K", body)
    assert {body} < set(written.values())


def _tensors(width: int, hidden: int, kind: int, head: int) -> list[Tensor]:
    shapes = {"token_embd.weight": (width, 1000), "output.weight": (width, 1000)}
    shapes |= {"blk.0.ffn_up.weight": (width, hidden), "blk.0.ffn_down.weight": (hidden, width)}
    made = [Tensor(name, (*shape, 1, 1), kind) for name, shape in shapes.items() if name != "output.weight"]
    norm = Tensor("output_norm.weight", (width, 1, 1, 1), llama_cpp.GGML_TYPE_F32)
    return [*made, Tensor("output.weight", (*shapes["output.weight"], 1, 1), head), norm]


@pytest.mark.parametrize(
    ("width", "hidden", "recipe", "reason"),
    [
        (512, 1024, "Q4_K+Q6_K", ""),
        (896, 4864, "Q4_K+Q6_K", "rows of 896 do not divide into Q4_K's blocks of 256"),
        (896, 4864, "Q4_0+Q6_K", "rows of 896 do not divide into Q6_K's blocks of 256"),
        (896, 4864, "Q4_0", ""),
        (512, 1000, "Q4_K+Q6_K", ""),  # the few that do not fit fall back
        (80, 160, "Q8_0", "rows of 80 do not divide into Q8_0's blocks of 32"),
        (512, 1024, "Q5_0", "the file is of these types already"),
    ],
)
def test_recipes_that_make_no_sense_say_why(width: int, hidden: int, recipe: str, reason: str) -> None:
    kind = llama_cpp.GGML_TYPE_Q5_0
    assert unfit(_tensors(width, hidden, kind, kind), BY_NAME[recipe]) == reason


def test_the_same_body_under_another_head_is_another_file() -> None:
    tensors = _tensors(512, 1024, llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q6_K)
    assert unfit(tensors, BY_NAME["Q4_0"]) == ""
    assert unfit(tensors, BY_NAME["Q4_0+Q6_K"]) == "the file is of these types already"
    odd = Tensor("blk.0.odd.weight", (1000, 9000, 1, 1), llama_cpp.GGML_TYPE_F16)
    assert unfit([odd, *tensors], BY_NAME["Q4_K+Q6_K"]).startswith("rows of 1000 do not divide into Q4_K's")
    assert unfit([tensors[-1]], BY_NAME["Q4_0"]) == "the file holds no matrices"


def test_what_does_not_fit_is_refused_before_llama_cpp_sees_it(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"model\.gguf cannot be quantised as Q4_K\+Q6_K: rows of 64"):
        quantize(source, tmp_path / "out.gguf", BY_NAME["Q4_K+Q6_K"])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_damaged_source_is_one_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot read"):
        quantize(tmp_path / "none.gguf", tmp_path / "out.gguf", BY_NAME["Q4_0"])
    (tmp_path / "text.gguf").write_text("once upon a time")
    with pytest.raises(CorruptModel, match="is not a GGUF file"):
        quantize(tmp_path / "text.gguf", tmp_path / "out.gguf", BY_NAME["Q4_0"])
    (tmp_path / "header.gguf").write_bytes(source.read_bytes()[:600])
    with pytest.raises(CorruptModel, match=r"header\.gguf is damaged or incomplete"):
        quantize(tmp_path / "header.gguf", tmp_path / "out.gguf", BY_NAME["Q4_0"])
    body = source.read_bytes()
    (tmp_path / "short.gguf").write_bytes(body[: len(body) - 5000])
    with pytest.raises(
        CorruptModel, match=r"llama\.cpp cannot quantise .*short\.gguf as Q4_0: .*models verify"
    ):
        quantize(tmp_path / "short.gguf", tmp_path / "out.gguf", BY_NAME["Q4_0"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["header.gguf", "short.gguf", "text.gguf"]


def test_what_stood_there_stays_when_it_fails(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    quantize(source, out, BY_NAME["Q4_0"])
    before = out.read_bytes()
    impossible = Recipe("nine", 999, 2, 2, 2)  # no such file type: llama.cpp itself refuses
    with pytest.raises(CorruptModel, match="as nine"):
        quantize(source, out, impossible)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_full_disk_and_a_closed_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match="set cache_dir"):
        quantize(source, tmp_path / "file" / "out.gguf", BY_NAME["Q4_0"])
    usage = type(shutil.disk_usage(tmp_path))(1 << 40, 1 << 40, 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match=r"are needed and 1,048,576 are free; make room and try again"):
        quantize(source, tmp_path / "out.gguf", BY_NAME["Q4_0"])


def test_a_disk_that_fills_up_on_the_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    free = iter([1 << 40, 1 << 20])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, next(free)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))  # no file may grow beyond
    try:
        with pytest.raises(DiskFull, match="1,048,576 are free"):
            quantize(source, tmp_path / "out.gguf", BY_NAME["Q8_0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
