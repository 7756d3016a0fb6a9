"""What tests of the transformers target share: how it is loaded, tokens by chance, rows compared."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from draftd.models.base import Rows

TARGET = {"slots": 4, "context": 128, "dtype": "float32", "device": "cpu", "threads": 1}

# Whether a bf16 model is known to give a row the same bits at any width: on AMD with AVX512-BF16 (Zen 4). How
# kernels cut their sums depends on the processor.
PROCESSORS = Path("/proc/cpuinfo")
AMD = PROCESSORS.is_file() and "AuthenticAMD" in PROCESSORS.read_text("utf-8")
SAME_BITS = AMD and bool(torch.cpu._is_avx512_bf16_supported())


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=count)


def close(found: Rows, expected: Rows) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()
