"""Packed weights give what the plain ones give, and the plain ones are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from draftd.models.packed import PackedLinear, can_pack, pack
from tests.tiny import write_tiny

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 kernels to pack for"
)


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_computes_what_the_plain_one_does(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 33, bias=bias).bfloat16()
    packed = PackedLinear(plain)
    assert (packed.weight.shape, packed.weight.dtype) == ((33, 48), torch.bfloat16)
    with torch.inference_mode():
        for shape in [(1, 1, 48), (2, 9, 48), (40, 48), (1, 0, 48), (0, 48)]:
            rows = torch.randn(shape).bfloat16()
            torch.testing.assert_close(packed(rows), plain(rows))


@needs_bf16
def test_a_row_alone_gives_the_bits_that_it_gives_among_four() -> None:
    torch.manual_seed(0)
    packed = PackedLinear(nn.Linear(1536, 256).bfloat16())
    rows = torch.randn(1, 4, 1536).bfloat16()
    with torch.inference_mode():
        among = packed(rows)
        for count in (1, 2, 3):
            assert torch.equal(packed(rows[:, :count]), among[:, :count])


@needs_bf16
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_whole_model(family: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path, family)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    packed = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    assert can_pack(packed)
    pack(packed)
    assert not any(type(module) is nn.Linear for module in packed.modules())
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    tokens = torch.tensor([[5, 9, 2, 77, 31, 8]])
    with torch.inference_mode():
        torch.testing.assert_close(packed(tokens).logits, plain(tokens).logits)


def test_only_bf16_on_a_cpu_is_packed(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny(tmp_path), dtype=torch.float32)
    assert not can_pack(model)
