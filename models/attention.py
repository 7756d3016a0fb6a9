"""Attention on a CPU whose rows are the same bits however many are computed, and whose keys are read once.

Grouped-query models share a head of keys among several heads of queries. torch's kernel reads it once for
each of them; here those queries are rows of one product (28 layers of 12 heads over 2, one row at 3500
positions: 260 ms a pass of the 1.5B model as it was, 141 so, on an AMD EPYC).

torch's kernel (flash attention on the CPU) gives a row other bits in two cases. Products of fewer than LEAST
rows take another path, so rows are filled up. And its sums over keys run in pieces whose ends depend on how
many keys there are, unless they are a number that `whole` gives: what is masked counts as an exact zero, and
pieces of nothing else change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from draftd.models.packed import on_cpu

NAME = "draftd_grouped"  # what the library calls it
LEAST = 4  # rows of a product
BLOCK = 512  # keys that the kernel takes at a time (kvSplitSize in ATen/native/cpu/FlashAttentionKernel.cpp)
PIECE = 192  # keys of those that oneDNN's product in 16 bits sums before it adds them to the rest


def use_grouped(model: Any) -> None:
    """Make a model on the CPU attend by `grouped`, unless it must attend in its own way."""
    if on_cpu(model) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def whole(length: int) -> int:
    """The keys to show of `length`, at least as many: blocks, and of the last one pieces."""
    blocks, rest = divmod(length, BLOCK)
    return blocks * BLOCK + min(-(-rest // PIECE) * PIECE, BLOCK)


def grouped(
    module: nn.Module,
    query: Tensor,  # [spans, heads, width, dim]
    key: Tensor,  # [spans, heads of keys, length, dim], and so is `value`
    value: Tensor,
    attention_mask: Tensor | None,  # [spans, 1, width, length]
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend with all queries that share keys as rows of one product: [spans, width, heads, dim]."""
    if attention_mask is None or options.get("position_bias") is not None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return result
    spans, heads, width, dim = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(spans, key.shape[1], groups * width, dim)
    mask = attention_mask.repeat(1, 1, groups, 1)
    if missing := -rows.shape[2] % LEAST:
        rows = functional.pad(rows, (0, 0, 0, missing))
        mask = torch.cat([mask, mask[:, :, -1:].expand(-1, -1, missing, -1)], dim=2)
    found = functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    found = found[:, :, : groups * width].reshape(spans, heads, width, value.shape[-1])
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, sdpa_mask)
