"""What a GGUF file's header says of its tensors and of draftd's own keys, by llama.cpp's own reader.

The gguf package reads a header as well, but takes seconds over a large vocabulary where this takes 0.1.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llama_cpp._ggml import libggml
from numpy.typing import NDArray

from draftd.ipc.errors import CorruptModel
from draftd.models import native
from draftd.models.convert import is_gguf


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor's name, its shape with the row length first, and its ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: int

    @property
    def columns(self) -> int:
        return self.shape[0]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return sum(size > 1 for size in self.shape) > 1


def read_tensors(path: Path) -> list[Tensor]:
    """The tensors of a GGUF file, in its order; raises ModelNotFound or CorruptModel."""
    return native.run(_read, path)


def read_array(path: Path, key: str) -> NDArray[np.int32] | None:
    """32-bit integers in a GGUF file's header, None if it has none of this name; raises as `read_tensors`."""
    return native.run(_read_array, path, key)


def kind_name(kind: int) -> str:
    """How people write a ggml type: Q4_0, F16."""
    return str(_KIND_NAME(kind).decode()).upper()


def block(kind: int) -> int:
    """How many weights of a row a type packs together; a row must be a multiple of it."""
    return int(_BLOCK(kind))


def row_bytes(kind: int, columns: int) -> int:
    """How many bytes a row of this length takes in this type."""
    return int(_ROW_SIZE(kind, columns))


class _Params(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def _bind(name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    function = getattr(libggml, name)
    function.restype = result
    function.argtypes = arguments
    return function  # type: ignore[no-any-return]


_OPEN = _bind("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _Params)
_FREE = _bind("gguf_free", None, ctypes.c_void_p)
_COUNT = _bind("gguf_get_n_tensors", ctypes.c_int64, ctypes.c_void_p)
_NAME = _bind("gguf_get_tensor_name", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
_KIND = _bind("gguf_get_tensor_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_SHAPE = _bind("gguf_get_tensor_ne", ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p, ctypes.c_int64)
_FIND = _bind("gguf_find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)
_LENGTH = _bind("gguf_get_arr_n", ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)
_NUMBERS = _bind("gguf_get_arr_data", ctypes.POINTER(ctypes.c_int32), ctypes.c_void_p, ctypes.c_int64)
_KIND_NAME = _bind("ggml_type_name", ctypes.c_char_p, ctypes.c_int)
_BLOCK = _bind("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
_ROW_SIZE = _bind("ggml_row_size", ctypes.c_size_t, ctypes.c_int, ctypes.c_int64)


@contextmanager
def _header(path: Path) -> Iterator[int]:
    if not is_gguf(path):
        raise CorruptModel(f"{path} is not a GGUF file: remove it and pull the model again")
    native.complaints(clear=True)
    header = _OPEN(str(path).encode(), _Params(True, None))
    if not header:
        why = native.complaints() or "llama.cpp gave no reason"
        raise CorruptModel(f"{path} is damaged or incomplete: remove it and pull the model again ({why})")
    try:
        yield header
    finally:
        _FREE(header)


def _read(path: Path) -> list[Tensor]:
    with _header(path) as header:
        return [
            Tensor(_NAME(header, index).decode(), tuple(_SHAPE(header, index)[:4]), _KIND(header, index))
            for index in range(_COUNT(header))
        ]


def _read_array(path: Path, key: str) -> NDArray[np.int32] | None:
    with _header(path) as header:
        if (index := _FIND(header, key.encode())) < 0:
            return None
        return np.array(_NUMBERS(header, index)[: _LENGTH(header, index)], np.int32)
