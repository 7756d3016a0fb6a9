"""Texts for tiny targets in llama.cpp, and how their rows are compared."""

from __future__ import annotations

import random

import numpy as np

from draftd.models.base import Span
from draftd.models.llama_cpp import LlamaTarget

CONTEXT = 96


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def close(target: LlamaTarget, one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for rounding: llama.cpp computes one row and many by different code, of q8_0 in 8 bits."""
    tolerance = 0.06 if target.path.name == "q8.gguf" else 1e-3
    return bool(np.abs(one - other).max() < tolerance * np.abs(other).max())


def fresh(target: LlamaTarget, tokens: list[int], rows: int = 1, slot: int = 3) -> np.ndarray:
    """The rows of a prefill from nothing, in a slot that the test does not use otherwise."""
    target.truncate(slot, 0)
    return target.forward([Span(slot, 0, tokens, rows)])[0].copy()
