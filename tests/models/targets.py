"""What tests of the transformers target share: how it is loaded, tokens by chance, rows compared."""

from __future__ import annotations

import random

import numpy as np

from draftd.models.base import Rows

TARGET = {"slots": 4, "context": 128, "dtype": "float32", "device": "cpu", "threads": 1}


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=count)


def close(found: Rows, expected: Rows) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()
