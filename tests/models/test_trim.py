"""A draft's file of fewer tokens: which are kept, and that all else is as it was."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from draftd.ipc.errors import DiskFull, InvalidConfig
from draftd.models import trim
from draftd.models.base import Span
from draftd.models.gguf_tensors import read_array, read_tensors
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.quantize import BY_NAME, quantize
from tests.tiny import cyrillic, retokenize, write_tiny
from tests.tiny_gguf import Quantised, write_gguf

ROWS = 352  # of the head


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's directory with tokens of Cyrillic letters."""
    root = tmp_path_factory.mktemp("trim")
    if request.param:
        return write_tiny(root / "model", vocab=ROWS, tied=True)
    return retokenize(write_tiny(root / "plain", vocab=ROWS), root / "model", cyrillic())


def rows(path: Path, tokens: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    model = LlamaTarget.load(path, slots=1, context=64, threads=1)
    try:
        return model.forward([Span(0, 0, tokens, len(tokens))])[0].copy()
    finally:
        model.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Plain English, naïve français, Ελληνικά and 𝒙² + π", set()),
        ("слово", {"Cyrillic"}),
        ("中文 and русский", {"CJK", "Cyrillic"}),
        ("ひらがな カタカナ ー", {"CJK"}),
        ("한국어", {"Hangul"}),
        ("سلام שלום สวัสดี नमस्ते", {"Arabic", "Hebrew", "Thai", "Devanagari"}),
        ("№ 1 €, ☃ 🎉 。", set()),
    ],
)
def test_the_scripts_of_a_text(text: str, found: set[str]) -> None:
    assert trim.scripts(text) == found


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"LANG": "de_DE.UTF-8"}, set()),
        ({"LANG": "C.UTF-8", "LC_ALL": "POSIX"}, set()),
        ({}, set()),
        ({"LANG": "zh_CN.UTF-8"}, {"CJK"}),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "en:ru:ja"}, {"CJK", "Cyrillic"}),
        ({"LC_CTYPE": "ko"}, {"Hangul"}),
        ({"LC_TIME": "th_TH.UTF-8"}, set()),
    ],
)
def test_the_scripts_of_a_systems_languages(environment: dict[str, str], found: set[str]) -> None:
    assert trim.of_locale(environment) == found


def test_tokens_of_scripts_that_nobody_uses_go() -> None:
    plain = [b"", b"a", b"\xd0", b" the"] * 24
    choice = trim.choose([*plain, *("д".encode(), " 中".encode(), b"\xd1\x8f.") * 20], [])
    assert choice is not None
    assert choice.kept.tolist() == list(range(96)), "pieces of letters and what has no text stay"
    assert choice.scripts == ("Cyrillic", "CJK"), "the largest first"
    used = trim.choose([*plain, *("д".encode(), " 中".encode()) * 32], ["CJK"])
    assert used is not None
    assert used.scripts == ("Cyrillic",)
    assert set(range(97, 160, 2)) <= set(used.kept.tolist())


def test_rows_are_filled_up_to_what_the_kernels_take_at_once() -> None:
    choice = trim.choose([b"a"] * 90 + ["д".encode()] * 40, [])
    assert choice is not None
    assert choice.kept.tolist() == list(range(96))


def test_a_file_is_not_written_for_a_few_tokens() -> None:
    assert trim.choose([b"a"] * 1000 + ["д".encode()] * 100, []) is None
    assert trim.choose([b"a"] * 1000 + ["д".encode()] * 200, []) is not None
    assert trim.choose([b"a"] * 1000 + ["д".encode()] * 200, ["Cyrillic"]) is None


@pytest.mark.parametrize("quantised", [None, "q8_0"])
def test_what_is_kept_says_what_it_said(model: Path, tmp_path: Path, quantised: Quantised) -> None:
    source, out = write_gguf(model, tmp_path / "model.gguf", quantised), tmp_path / "deep" / "trimmed.gguf"
    kept = np.array([*range(0, 200), *range(201, 313, 2)], np.int32)
    trim.write(source, out, trim.Choice(kept, ()))
    found = trim.read(out, ROWS)
    assert found is not None
    assert found.kept.tolist() == kept.tolist()
    assert found.rows == ROWS
    tokens = [40, 41, 199, 201, 203, 311, 5]
    ids = found.draft_ids(tokens)
    assert ids[:3] == [40, 41, 199]
    assert ids[3:] == [200, 201, 255, 5]
    whole, cut = rows(source, tokens), rows(out, ids)
    assert np.array_equal(cut, whole[:, kept])
    widened = found.row(cut[0])
    assert widened.shape == (ROWS,)
    assert np.array_equal(widened[kept], whole[0, kept])
    absent = np.setdiff1d(np.arange(ROWS), kept)
    assert (widened[absent] < whole.min() - 1e6).all()
    assert [found.draft_id(token) for token in (199, 200, 201, 351)] == [199, None, 200, None]
    assert found.draft_ids([200, 351]) == [256, 256], "beyond its vocabulary"
    assert trim.read(source, ROWS) is None


def test_rows_of_another_width_than_the_files(model: Path, tmp_path: Path) -> None:
    source = write_gguf(model, tmp_path / "model.gguf")
    trim.write(source, tmp_path / "out.gguf", trim.Choice(np.arange(256, dtype=np.int32), ()))
    for width in (ROWS + 32, ROWS - 32):
        found = trim.read(tmp_path / "out.gguf", width)
        assert found is not None
        assert found.row(np.zeros(256, np.float32)).shape == (width,)
        assert found.draft_id(ROWS - 1) is None


def test_other_types_keep_what_it_has_kept(model: Path, tmp_path: Path) -> None:
    source = write_gguf(model, tmp_path / "model.gguf")
    kept = np.arange(256, dtype=np.int32)
    trim.write(source, tmp_path / "trimmed.gguf", trim.Choice(kept, ()))
    quantize(tmp_path / "trimmed.gguf", tmp_path / "q.gguf", BY_NAME["Q8_0"])
    quantize(source, tmp_path / "whole.gguf", BY_NAME["Q8_0"])
    found = trim.read(tmp_path / "q.gguf", ROWS)
    assert found is not None
    assert found.kept.tolist() == kept.tolist()
    shapes = {tensor.name: tensor.shape[1] for tensor in read_tensors(tmp_path / "q.gguf")}
    assert shapes["token_embd.weight"] == 256
    whole, cut = rows(tmp_path / "whole.gguf", [40, 41]), rows(tmp_path / "q.gguf", [40, 41])
    assert np.array_equal(cut, whole[:, kept])


def test_a_full_disk_leaves_no_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write_gguf(model, tmp_path / "model.gguf"), tmp_path / "out" / "trimmed.gguf"
    choice = trim.Choice(np.arange(256, dtype=np.int32), ())

    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(InvalidConfig, match="Disk quota exceeded"):
        trim.write(source, out, choice)
    assert list(out.parent.iterdir()) == []
    monkeypatch.setattr("draftd.models.quantize._MARGIN", 1 << 60)
    with pytest.raises(DiskFull, match="is full"):
        trim.write(source, out, choice)


def test_a_header_without_such_numbers(model: Path, tmp_path: Path) -> None:
    source = write_gguf(model, tmp_path / "model.gguf")
    assert read_array(source, "draftd.kept_tokens") is None
