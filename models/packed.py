"""A transformers model's weights in the layout that the CPU's kernel (oneDNN) reads best, once, at load.

A bf16 `Linear` as torch keeps it is copied into that layout piece by piece in every pass. Packed ahead, as
torch's own compiler does with frozen weights, a pass of one row takes two thirds of the time and gives the
same bits; the plain copy is dropped, so it costs no memory. Fewer than four rows are filled up to four: the
kernel takes longer for one (153 ms a pass of 1.5B parameters on an AMD EPYC, 134 filled up).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEAST = 4  # rows that the kernel is given


class PackedLinear(nn.Module):
    """A linear layer whose weight only the kernel can read; its type, shape and device still show."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, rows: Tensor) -> Tensor:  # [..., inputs] to [..., outputs]
        count = rows.shape[:-1].numel()
        if count >= LEAST or count == 0:  # of the head, none where more of a prompt is to come
            return self._multiply(rows)
        filled = rows.new_zeros(LEAST, rows.shape[-1])
        filled[:count] = rows.reshape(count, -1)
        return self._multiply(filled)[:count].reshape(*rows.shape[:-1], -1)

    def _multiply(self, rows: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return result


def on_cpu(model: Any) -> bool:
    """Whether all of a model's weights are in main memory."""
    return all(weight.device.type == "cpu" for weight in model.parameters())


def can_pack(model: Any) -> bool:
    """Whether all of the model is where and what the packed kernel is for: bf16, on a CPU that has it."""
    ops = torch.ops.mkldnn
    return (
        on_cpu(model)
        and model.dtype == torch.bfloat16
        and hasattr(ops, "_linear_pointwise")
        and hasattr(ops, "_reorder_linear_weight")
        and bool(ops._is_mkldnn_bf16_supported())
    )


@torch.no_grad()
def pack(model: nn.Module) -> None:
    """Replace every plain linear layer below `model` by its packed form, one at a time."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
    # What is left views the weights' file, and would keep all of it mapped.
    for left in model.parameters():
        left.data = left.data.clone()
