"""Attention by groups: it is attention, and where the kernels allow it the same bits at any width."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from draftd.models.attention import BLOCK, NAME, PIECE, grouped, use_grouped, whole
from draftd.models.base import Rows, Span
from draftd.models.transformers import TransformersTarget
from tests.models.targets import SAME_BITS, TARGET, tokens
from tests.tiny import write_tiny

same_bits = pytest.mark.skipif(not SAME_BITS, reason="this CPU is not known to give a row the same bits")
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 15, 16, 17, 31, 33, 48, 64)
# Around ends of pieces and blocks of keys.
STARTS = (3, 127, 180, 191, 300, 383, 500, 511, 690, 1020)


def attend(query: Tensor, key: Tensor, value: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """Rows of positions from `start` on over all keys given, [width, heads, dim]."""
    at = start + torch.arange(query.shape[2])[:, None]
    hidden = torch.arange(key.shape[2]) > at
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
    mask = mask.expand(query.shape[0], 1, -1, -1)
    return grouped(nn.Module(), query, key, value, mask, scaling=0.2)[0][0]


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (6, 2), (9, 3), (8, 1)])
@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_it_is_attention(heads: int, shared: int, width: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, heads, width, 16)
    key, value = torch.randn(2, 3, shared, 100, 16).unbind()
    mask = torch.rand(3, 1, width, 100) < 0.5
    mask[..., 0] = True
    scores = query @ key.repeat_interleave(heads // shared, 1).mT * 0.2
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = (weights @ value.repeat_interleave(heads // shared, 1)).transpose(1, 2)
    found, _ = grouped(nn.Module(), query, key, value, mask, scaling=0.2)
    torch.testing.assert_close(found, expected)


@given(st.integers(1, 5000))
def test_whole_pieces_and_blocks_are_shown(length: int) -> None:
    shown = whole(length)
    assert length <= shown < length + PIECE
    assert shown % BLOCK % PIECE == 0
    assert whole(shown) == shown


@same_bits
@pytest.mark.parametrize(("heads", "shared", "dim"), [(12, 2, 128), (9, 3, 64), (4, 4, 32)])
def test_a_row_is_the_same_bits_at_any_width_and_beside_any_others(heads: int, shared: int, dim: int) -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, shared, whole(2000), dim).bfloat16().unbind()
    query = torch.randn(3, heads, max(WIDTHS), dim).bfloat16()

    def rows(start: int, width: int, spans: int, length: int) -> Tensor:
        shown = slice(whole(length))
        spread = query[:spans, :, :width], keys[:spans, :, shown], values[:spans, :, shown]
        return attend(*spread, start, torch.bfloat16)

    for start in STARTS:
        expected = rows(start, max(WIDTHS), 1, start + max(WIDTHS))
        for width in WIDTHS:
            for spans, longest in ((1, 0), (2, 0), (3, 700), (3, 2000)):
                found = rows(start, width, spans, max(start + width, longest))
                assert torch.equal(found, expected[:width]), (start, width, spans, longest)


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "gemma3"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformersTarget:
    path = write_tiny(tmp_path_factory.mktemp("model"), request.param, window=100)
    options: dict[str, Any] = {**TARGET, "dtype": "bfloat16", "context": 700}
    return TransformersTarget.load(path, **options)


@same_bits
def test_a_target_gives_the_same_bits_however_it_is_asked(target: TransformersTarget) -> None:
    prompt = tokens(700)

    def by(chunks: list[int], others: list[Span]) -> Rows:
        """Rows of the whole prompt, fed to slot 1 in such chunks again and again, beside others."""
        target.truncate(1, 0)
        found, start, turn = [], 0, 0
        while start < len(prompt):
            chunk = prompt[start : start + chunks[turn % len(chunks)]]
            beside = others if turn % 3 == 2 else []
            found.append(target.forward([Span(1, start, chunk, len(chunk)), *beside])[0].copy())
            start, turn = start + len(chunk), turn + 1
        return np.concatenate(found)

    target.forward([Span(1, 0, prompt[:50], 0)])  # no row of it is wanted: more of the prompt is to come
    expected = by([700], [])
    others = [Span(0, 0, tokens(5, seed=1), 5), Span(3, 0, tokens(390, seed=2), 1)]
    for chunks in ([1], [4], [2, 9, 1], [5, 64], [300, 1, 3]):
        assert np.array_equal(by(chunks, []), expected), chunks
        assert np.array_equal(by(chunks, others), expected), chunks


def test_a_model_that_attends_in_its_own_way_keeps_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    use_grouped(model)
    assert model.config._attn_implementation == "eager"
    model = AutoModelForCausalLM.from_pretrained(path)
    use_grouped(model)
    assert model.config._attn_implementation == NAME
    weights = [SimpleNamespace(device=torch.device("cuda"))]
    config = SimpleNamespace(_attn_implementation="sdpa")
    use_grouped(SimpleNamespace(config=config, parameters=lambda: weights))
    assert config._attn_implementation == "sdpa"
