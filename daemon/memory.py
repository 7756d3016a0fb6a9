"""How much memory a pair needs, estimated from its files before anything is loaded."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from draftd.daemon.settings import Settings
from draftd.ipc.errors import CorruptModel
from draftd.models.catalog import Model, Pair
from draftd.models.fetch import cached_path

GGUF_BITS = 4.8  # a weight in a 4-bit GGUF file, its wider tensors included
BITS = {"bfloat16": 16, "float16": 16, "float32": 32}
RUNTIME = 600_000_000  # bytes: Python, torch, llama.cpp's work buffers
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def needed(pair: Pair, settings: Settings, backend: str) -> int:
    """Bytes that the engine will hold: weights, key-value caches, the runtime."""
    total = RUNTIME + weights(pair.target, settings, backend) + _cache(pair.target, settings, backend)
    if pair.draft is not None and settings.speculate:
        total += weights(pair.draft, settings, "llama_cpp") + _cache(pair.draft, settings, "llama_cpp")
    return total


def weights(model: Model, settings: Settings, backend: str) -> int:
    """Bytes of a model's weights once they are loaded."""
    path = cached_path(model, settings.cache_dir)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    size = path.stat().st_size if path.is_file() else model.size or 0
    return size if backend == "llama_cpp" else int(size * BITS[settings.dtype] / GGUF_BITS)


def _cache(model: Model, settings: Settings, backend: str) -> int:
    """Keys and values of every slot; nothing while the file that would tell is not here."""
    shape = model_shape(cached_path(model, settings.cache_dir))
    if shape is None:
        return 0
    layers, heads, width = shape
    bits = 16 if backend == "llama_cpp" else BITS[settings.dtype]
    return 2 * settings.slots * settings.context * layers * heads * width * bits // 8


def model_shape(path: Path) -> tuple[int, int, int] | None:
    """Layers, key-value heads and their width, from a GGUF file or a transformers directory."""
    if path.is_dir() and (path / "config.json").is_file():
        config: dict[str, Any] = json.loads((path / "config.json").read_text("utf-8"))
        return _shape(
            config,
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "hidden_size",
            "head_dim",
        )
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            values = read_header(file)
        except (struct.error, UnicodeDecodeError, KeyError):
            raise CorruptModel(f"{path} is not a readable GGUF file: remove it and pull it again") from None
    prefix = str(values.get("general.architecture", ""))
    values = {key.removeprefix(f"{prefix}."): value for key, value in values.items()}
    return _shape(
        values,
        "block_count",
        "attention.head_count",
        "attention.head_count_kv",
        "embedding_length",
        "attention.key_length",
    )


def read_header(file: BinaryIO) -> dict[str, Any]:
    """A GGUF file's metadata up to the tokenizer's, which is long and comes after the model's."""
    magic, _, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF":
        raise KeyError(magic)
    values: dict[str, Any] = {}
    for _ in range(count):
        key = _value(file, STRING)
        kind = _value(file, 4)
        if key.startswith("tokenizer."):
            break
        values[key] = _value(file, kind)
    return values


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return file.read(_value(file, 10)).decode("utf-8")
    if kind == ARRAY:
        of, count = _value(file, 4), _value(file, 10)
        return [_value(file, of) for _ in range(count)]
    code = f"<{SCALARS[kind]}"
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _shape(
    values: Mapping[str, Any], layers: str, heads: str, kv_heads: str, width: str, head_width: str
) -> tuple[int, int, int] | None:
    if not all(isinstance(values.get(key), int) for key in (layers, heads, width)):
        return None
    per_head = values.get(head_width) or values[width] // values[heads]
    return values[layers], values.get(kv_heads) or values[heads], per_head
