"""What a model's files say of its size, and files that are none."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from draftd.daemon.model_files import read_shape
from draftd.ipc.errors import CorruptModel
from tests.gguf_header import SHAPE, write_header


def test_a_gguf_and_its_directory_have_one_shape(tiny_files: Path) -> None:
    gguf, directory = read_shape(tiny_files / "same.gguf"), read_shape(tiny_files / "target")
    assert gguf is not None
    assert directory is not None
    for name in ("layers", "kv_heads", "head_width", "width", "vocab", "elements", "tied", "longest"):
        assert getattr(gguf, name) == getattr(directory, name), name


def test_a_directory_whose_weights_git_lfs_did_not_fetch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CorruptModel, match="is not a readable model"):
        read_shape(tmp_path)


def test_weights_in_torchs_own_files_are_counted_by_their_size(tiny_files: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(tiny_files / "target", tmp_path / "older"))
    shape = read_shape(older)
    assert shape is not None
    (older / "model.safetensors").unlink()
    (older / "pytorch_model.bin").write_bytes(bytes(4 * shape.elements))
    found = read_shape(older)
    assert found is not None
    assert (found.elements, found.size, found.vocab) == (shape.elements, 4 * shape.elements, shape.vocab)


def test_a_gguf_in_several_parts_is_counted_whole(tmp_path: Path) -> None:
    one, first, second = (tmp_path / f"x{part}.gguf" for part in ("", "-00001-of-00002", "-00002-of-00002"))
    write_header(one, SHAPE)
    write_header(first, SHAPE)
    write_header(second, {"split.no": 1})
    shape, found = read_shape(one), read_shape(first)
    assert shape is not None
    assert found is not None
    assert found.size == shape.size + second.stat().st_size
    assert (found.layers, found.vocab, found.elements) == (shape.layers, shape.vocab, shape.elements)


@pytest.mark.parametrize(("kind", "full"), [(0, True), (15, False), (None, False)])
def test_a_gguf_all_in_32_bits_is_told_apart(kind: int | None, full: bool, tmp_path: Path) -> None:
    write_header(tmp_path / "x.gguf", SHAPE | ({} if kind is None else {"general.file_type": kind}))
    shape = read_shape(tmp_path / "x.gguf")
    assert shape is not None
    assert shape.full == full


def test_a_list_longer_than_any_file(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    key = struct.pack("<Q1sI", 1, b"x", 9)  # a list
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + key + struct.pack("<IQ", 10, 2**63))
    with pytest.raises(CorruptModel, match="is not a readable model"):
        read_shape(file)
