"""The slot cache on its own: what is stored where, what is copied, what is hidden."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from draftd.models.base import Span
from draftd.models.slots import SlotCache

HEADS, DIM = 2, 4


def span(slot: int, start: int, width: int) -> Span:
    return Span(slot, start, [0] * width, 0)


def fill(cache: SlotCache, spans: list[Span], value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Store keys of `value` and values of -`value`, padding of NaN, in layer 0; what is attended to."""
    step = cache.begin(spans)
    new = torch.full((len(spans), HEADS, step.width, DIM), torch.nan)
    for row, one in enumerate(spans):
        new[row, :, : len(one.tokens)] = value
        cache.lengths[one.slot] = one.start + len(one.tokens)
    return cache.update(new, -new, 0)


def buffers(cache: SlotCache, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    one = cache.slot_layers[layer]
    assert one.keys is not None
    assert one.values is not None
    return one.keys, one.values


def test_one_span_reads_the_buffer_itself() -> None:
    cache = SlotCache(1, slots=3, context=16)
    fill(cache, [span(1, 0, 5)], 1.0)
    keys, values = fill(cache, [span(1, 5, 2)], 2.0)
    assert keys.shape == values.shape == (1, HEADS, 7, DIM)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, 1, 1, 2, 2]
    assert torch.equal(values, -keys)
    buffer, _ = buffers(cache)
    assert keys.data_ptr() == buffer[1].data_ptr()


def test_adjacent_slots_are_read_in_place_and_others_are_gathered() -> None:
    cache = SlotCache(1, slots=4, context=16)
    keys, _ = fill(cache, [span(1, 0, 3), span(2, 0, 2)], 1.0)
    buffer, _ = buffers(cache)
    assert keys.data_ptr() == buffer[1].data_ptr()
    keys, _ = fill(cache, [span(0, 0, 1), span(2, 2, 3)], 2.0)
    assert keys.data_ptr() != buffer[0].data_ptr()
    assert keys[:, 0, :, 0].tolist() == [[2, 0, 0, 0, 0], [1, 1, 2, 2, 2]]


def test_padding_is_never_stored() -> None:
    cache = SlotCache(1, slots=2, context=8)
    fill(cache, [span(0, 0, 8), span(1, 0, 1)], 1.0)
    keys, _ = fill(cache, [span(0, 7, 1), span(1, 1, 4)], 2.0)  # padded past the end of slot 0
    assert keys[:, 0, :, 0].tolist() == [[1] * 7 + [2], [1, 2, 2, 2, 2, 0, 0, 0]]


def test_truncate_moves_nothing() -> None:
    cache = SlotCache(1, slots=1, context=8)
    fill(cache, [span(0, 0, 6)], 1.0)
    buffer, _ = buffers(cache)
    before = buffer.clone()
    cache.truncate(0, 2)
    assert cache.lengths == [2]
    assert torch.equal(before, buffer)
    keys, _ = fill(cache, [span(0, 2, 1)], 3.0)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 3]


def test_copy_prefix_copies_that_much_of_every_layer() -> None:
    cache = SlotCache(3, slots=3, context=8)
    fill(cache, [span(2, 0, 6)], 1.0)
    cache.update(torch.full((1, HEADS, 6, DIM), 5.0), torch.full((1, HEADS, 6, DIM), 6.0), 2)
    cache.copy_prefix(2, 0, 4)
    assert cache.lengths == [4, 0, 6]
    for layer, key, value in ((0, 1, -1), (2, 5, 6)):  # layer 1 has never run and has no buffers
        keys, values = buffers(cache, layer)
        assert keys[0, 0, :, 0].tolist() == [key] * 4 + [0] * 4
        assert values[0, 0, :, 0].tolist() == [value] * 4 + [0] * 4
    cache.copy_prefix(2, 2, 3)
    assert cache.lengths == [4, 0, 3]


def test_layers_may_differ_in_heads_and_sizes() -> None:
    cache = SlotCache(2, slots=2, context=8)
    cache.begin([span(0, 0, 3)])
    cache.update(torch.zeros(1, 4, 3, 6), torch.zeros(1, 4, 3, 2), 0)
    keys, values = cache.update(torch.zeros(1, 1, 3, 16), torch.zeros(1, 1, 3, 16), 1)
    assert [buffer.shape for buffer in buffers(cache)] == [(2, 4, 8, 6), (2, 4, 8, 2)]
    assert keys.shape == values.shape == (1, 1, 3, 16)


@pytest.mark.parametrize("length", [-1, 4])
def test_lengths_that_are_not_held_are_refused(length: int) -> None:
    cache = SlotCache(1, slots=2, context=8)
    fill(cache, [span(0, 0, 3)], 1.0)
    with pytest.raises(ValueError, match="slot 0 holds 3 positions"):
        cache.truncate(0, length)
    with pytest.raises(ValueError, match="slot 0 holds 3 positions"):
        cache.copy_prefix(0, 1, length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_slot_is_the_same_in_another(dtype: torch.dtype) -> None:
    cache = SlotCache(2, slots=3, context=8)
    cache.begin([span(1, 0, 5)])
    cache.lengths[1] = 5
    random = torch.Generator().manual_seed(0)
    for layer, heads in ((0, 4), (1, 1)):
        keys, values = (torch.randn(1, heads, 5, 3, generator=random).to(dtype) for _ in range(2))
        cache.update(keys, values, layer)
    state = cache.save(1)
    expected = [[buffer[1, :, :3].clone() for buffer in buffers(cache, layer)] for layer in range(2)]
    cache.truncate(1, 0)
    cache.load(0, state, 3)
    assert cache.lengths == [3, 0, 0]
    for layer in range(2):
        for buffer, saved in zip(buffers(cache, layer), expected[layer], strict=True):
            assert torch.equal(buffer[0, :, :3], saved)
            assert not buffer[0, :, 3:].any()


def test_a_state_that_cannot_be_this_models_is_refused() -> None:
    cache = SlotCache(1, slots=2, context=8)
    fill(cache, [span(0, 0, 3)], 1.0)
    state = cache.save(0)
    for wrong, length in ((state[:-1], 2), (state, 4), (np.tile(state, 3), 9)):
        with pytest.raises(ValueError, match="bytes are not"):
            cache.load(0, wrong, length)
        assert cache.lengths == [0, 0]


def test_what_is_no_number_is_gone_once_it_is_rolled_back() -> None:
    """Masked it would count with a weight of 0, and 0 times infinity is NaN."""
    cache = SlotCache(1, slots=2, context=16)
    fill(cache, [span(0, 0, 3)], 1.0)
    fill(cache, [span(0, 3, 5)], torch.inf)
    cache.end([span(0, 3, 5)])
    cache.truncate(0, 4)
    both = [span(0, 4, 1), span(1, 0, 8)]
    keys, values = fill(cache, both, 2.0)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 1, torch.inf, 2, 0, 0, 0]
    assert torch.equal(values, -keys)
    cache.end(both)
    cache.truncate(0, 1)
    keys, _ = fill(cache, [span(0, 1, 1), span(1, 8, 1)], 3.0)
    assert keys[0, 0, :, 0].tolist() == [1, 3, 0, 0, 2, 0, 0, 0, 0], "what is a number stays"
