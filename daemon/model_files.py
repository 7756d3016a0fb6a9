"""What a model's files say of its size before anything is loaded: a GGUF header, a transformers directory.

Neither torch nor llama.cpp is needed to read them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from draftd.ipc.errors import CorruptModel
from draftd.models.convert import parts

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
OUTPUT = ("output.weight", "lm_head.weight")
# ggml's numbers of Q4_0, Q2_K, Q4_K and IQ4_NL: llama.cpp packs such weights for the CPU (x86 without AMX), a
# copy beside the mapped file
PACKED = (2, 10, 12, 20)
ALL_F32 = 0  # llama.cpp's number of a file without other types


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's measures; a head's width is that of keys and values."""

    layers: int
    kv_heads: int
    head_width: int
    width: int  # of the hidden state
    vocab: int
    elements: int  # weights, an output that is tied to the embedding counted once
    tied: bool  # the output is the embedding
    size: int  # bytes of the weights' files
    packed: int  # of these, bytes that llama.cpp keeps a second time, packed for the CPU
    longest: int | None  # positions it was trained for
    full: bool  # a GGUF whose weights are all in 32 bits: llama.cpp keeps its keys and values so, too

    @property
    def position_elements(self) -> int:
        """Keys and values of one position."""
        return 2 * self.layers * self.kv_heads * self.head_width


def read_shape(path: Path) -> Shape | None:
    """The shape of a GGUF file or a transformers directory; None where its files don't tell.

    Raises CorruptModel for a file that is no readable GGUF.
    """
    try:
        if path.is_dir() and (path / "config.json").is_file():
            return _from_directory(path)
        return _from_gguf(path) if path.is_file() else None
    except (struct.error, UnicodeDecodeError, LookupError, OverflowError, ValueError):
        raise CorruptModel(f"{path} is not a readable model: remove it and pull it again") from None


def _from_directory(path: Path) -> Shape | None:
    config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
    config = config.get("text_config") or config
    tensors: dict[str, tuple[int, ...]] = {}
    size = 0
    for file in path.glob("*.safetensors"):
        size += file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:  # as of the text that git lfs leaves in a file's place
                raise ValueError(length)
            header = json.loads(opened.read(length))
        tensors |= {name: tuple(each["shape"]) for name, each in header.items() if name != "__metadata__"}
    if not tensors:  # in files of torch's own, which can't be read here: by their size
        size = sum(file.stat().st_size for file in path.glob("pytorch_model*.bin"))
        wide = (config.get("dtype") or config.get("torch_dtype") or "float32") == "float32"
        tensors = {"": (size // (4 if wide else 2),)}
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
    found = [config.get(key) for key in (*keys, "max_position_embeddings")]
    return _shape(found, config.get("vocab_size"), tensors, size)


def _from_gguf(path: Path) -> Shape | None:
    values: dict[str, Any] = {}
    tensors: dict[str, tuple[int, ...]] = {}
    size = packed = 0
    for part in parts(path):
        with part.open("rb") as file:
            found_here, shapes, packed_here = _read_gguf(file, part.stat().st_size)
        values = found_here | values  # the first has the model's
        tensors |= shapes
        size, packed = size + part.stat().st_size, packed + packed_here
    prefix = str(values.get("general.architecture", ""))
    keys = ("block_count", "attention.head_count", "attention.head_count_kv", "embedding_length")
    found = [values.get(f"{prefix}.{key}") for key in (*keys, "attention.key_length", "context_length")]
    vocab = max((shape[1] for name, shape in tensors.items() if name == "token_embd.weight"), default=None)
    return _shape(found, vocab, tensors, size, packed, values.get("general.file_type") == ALL_F32)


def _shape(
    found: list[Any],
    vocab: Any,
    tensors: Mapping[str, tuple[int, ...]],
    size: int,
    packed: int = 0,
    full: bool = False,
) -> Shape | None:
    layers, heads, kv_heads, width, head_width, longest = found
    if not all(isinstance(value, int) and value > 0 for value in (layers, heads, width, vocab)):
        return None
    return Shape(
        layers=layers,
        kv_heads=kv_heads or heads,
        head_width=head_width or width // heads,
        width=width,
        vocab=vocab,
        elements=sum(math.prod(shape) for shape in tensors.values()),
        tied=not any(name in tensors for name in OUTPUT),
        size=size,
        packed=packed,
        longest=longest if isinstance(longest, int) else None,
        full=full,
    )


def _read_gguf(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], int]:
    """A GGUF file's metadata without its lists, its tensors' shapes, the row length first, bytes packed."""
    magic, _, tensors, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise KeyError(magic)
    values: dict[str, Any] = {}
    for _ in range(count):
        key = _string(file)
        values[key] = _value(file, *struct.unpack("<I", file.read(4)))
    shapes = {}
    begins: list[tuple[int, bool]] = []  # where each tensor's bytes begin, and whether they are packed
    for _ in range(tensors):
        name = _string(file)
        (dimensions,) = struct.unpack("<I", file.read(4))
        shapes[name] = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
        kind, begin = struct.unpack("<IQ", file.read(12))
        begins.append((begin, kind in PACKED and name != "token_embd.weight"))
    begins.sort()
    ends = [begin for begin, _ in begins[1:]] + [size - file.tell()]
    packed = sum(end - begin for (begin, is_packed), end in zip(begins, ends, strict=True) if is_packed)
    return values, shapes, packed


def _value(file: BinaryIO, kind: int) -> Any:
    """A value; of a list, which may be a whole vocabulary, only the way past it."""
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        code = f"<{SCALARS[kind]}"
        return struct.unpack(code, file.read(struct.calcsize(code)))[0]
    of, count = struct.unpack("<IQ", file.read(12))
    if of in SCALARS:
        file.seek(struct.calcsize(f"<{SCALARS[of]}") * count, 1)
    else:
        for _ in range(count):
            _value(file, of)
    return None


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > 1 << 24:
        raise ValueError(length)
    return file.read(length).decode("utf-8")
