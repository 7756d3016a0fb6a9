"""The start of a GGUF file, for what reads no further."""

from __future__ import annotations

import struct
from pathlib import Path


def write_header(path: Path, values: dict[str, str | int | list[str]]) -> None:
    """The start of a GGUF file: its metadata, a list as a vocabulary is one, and one tensor's place."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    made = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(values) + 1)
    for key, value in values.items():
        made += text(key)
        if isinstance(value, str):
            made += struct.pack("<I", 8) + text(value)
        elif isinstance(value, int):
            made += struct.pack("<II", 4, value)
        else:
            made += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    made += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(text, "abc"))
    path.write_bytes(
        made + text("token_embd.weight") + struct.pack("<IQQIQ", 2, 576, 1000, 2, 0) + bytes(5000)
    )


SHAPE: dict[str, str | int | list[str]] = {
    "general.architecture": "llama",
    "general.languages": ["en", "de"],
    "llama.block_count": 30,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}
