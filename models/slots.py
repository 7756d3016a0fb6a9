"""Keys and values of many requests, one buffer a layer, written by (slot, position)."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from draftd.models.base import Layers, Span, State


class Step:
    """Where one forward writes and what it attends to: its spans, one a row, padded to the widest."""

    def __init__(self, spans: Sequence[Span], shown: Callable[[int], int]) -> None:
        self.slots = [span.slot for span in spans]
        self.starts = [span.start for span in spans]
        self.widths = [len(span.tokens) for span in spans]
        self.width = max(self.widths)
        ends = [start + width for start, width in zip(self.starts, self.widths, strict=True)]
        self.length = shown(max(ends))
        self._indices: dict[torch.device, tuple[Tensor, ...]] = {}
        first = self.slots[0]
        self._adjacent = self.slots == list(range(first, first + len(self.slots)))

    def store(self, buffer: Tensor, new: Tensor) -> Tensor:
        """Write `new` [spans, heads, width, dim] into `buffer` [slots, heads, context, dim].

        Returns what the spans attend to, [spans, heads, length, dim]: a view unless several slots lie apart.
        """
        first = self.slots[0]
        if len(self.slots) == 1:
            buffer[first, :, self.starts[0] : self.starts[0] + self.width] = new[0]
            return buffer[first : first + 1, :, : self.length]
        rows, columns, slots, positions, each = self._index(buffer.device)
        buffer[slots, :, positions] = new[rows, :, columns]  # [tokens, heads, dim]: the padding stays out
        attended = buffer[:, :, : self.length]
        if self._adjacent:
            return attended[first : first + len(self.slots)]
        return attended.index_select(0, each)

    def _index(self, device: torch.device) -> tuple[Tensor, ...]:
        """Row, column in the forward, slot, position in the buffer of every token; each span's slot."""
        if device not in self._indices:
            places = zip(self.slots, self.starts, self.widths, strict=True)
            spots = [
                (row, column, slot, start + column)
                for row, (slot, start, width) in enumerate(places)
                for column in range(width)
            ]
            tokens = torch.tensor(spots, device=device).unbind(1)  # four, [tokens] each
            self._indices[device] = *tokens, torch.tensor(self.slots, device=device)
        return self._indices[device]


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers, [slots, heads, context, dim], made when it first runs, on its own device."""

    is_sliding = False  # a window is the mask's work: nothing is overwritten, so it can be rolled back

    def __init__(self, slots: int, context: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots, self.context = slots, context
        self.step: Step | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, since what is masked is still multiplied by its weight of 0, and 0 * NaN is NaN.
        self.keys, self.values = (
            new.new_zeros(self.slots, new.shape[1], self.context, new.shape[3])
            for new in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.step is not None, "begin() comes before a forward"
        assert self.keys is not None
        assert self.values is not None
        return self.step.store(self.keys, key_states), self.step.store(self.values, value_states)

    def get_seq_length(self) -> int:
        return min(self.step.starts) if self.step else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.step.length if self.step else query_length), 0

    def get_max_length(self) -> int:
        return self.context


class SlotCache(Cache):
    """All layers' slots, and how many positions of each are valid; `lengths` is the only truth about that.

    A forward attends to `shown(length)` positions, `length` or more and at most `context`; its mask hides
    those that are not its own.
    """

    def __init__(self, layers: int, slots: int, context: int, shown: Callable[[int], int] = int) -> None:
        self._shown = shown
        self.slot_layers = [SlotLayer(slots, context) for _ in range(layers)]
        super().__init__(layers=list(self.slot_layers))
        self.lengths = [0] * slots
        self._spoilt = [0] * slots  # up to where a slot may hold what is no number

    def begin(self, spans: Sequence[Span]) -> Step:
        """Point every layer at what the next forward writes."""
        for span in spans:
            if self._spoilt[span.slot] > span.start:
                # Beside a longer span it would be masked, which does not help: 0 * NaN is NaN.
                for buffer in self._buffers():
                    buffer[span.slot, :, span.start : self._spoilt[span.slot]] = 0
                self._spoilt[span.slot] = span.start
        step = Step(spans, self._shown)
        for layer in self.slot_layers:
            layer.step = step
        return step

    def end(self, spans: Sequence[Span]) -> None:
        """The forward is over: what it wrote counts, and where it is no number, that is remembered."""
        last = list(self._buffers())[-2:]  # what is no number in one layer is none in the next
        for span in spans:
            end = self.lengths[span.slot] = span.start + len(span.tokens)
            if not all(buffer[span.slot, :, span.start : end].isfinite().all() for buffer in last):
                self._spoilt[span.slot] = end

    def truncate(self, slot: int, length: int) -> None:
        """Forget the positions from `length` on: nothing moves, they are overwritten before they are seen."""
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"slot {slot} holds {self.lengths[slot]} positions, it can't be cut to {length}")
        self.lengths[slot] = length

    def drop(self, slots: Sequence[int]) -> None:
        """Empty slots and give their pages back to the system; they read as zeros from then on."""
        for slot in slots:
            self.lengths[slot] = 0
            for layer in self.slot_layers:
                for buffer in (layer.keys, layer.values):
                    if buffer is not None and buffer.device.type == "cpu":
                        _give_back(buffer[slot])

    @torch.inference_mode()
    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `target` those of slot `source`."""
        if not 0 <= length <= self.lengths[source]:
            raise ValueError(f"slot {source} holds {self.lengths[source]} positions, not {length} to copy")
        if source != target:
            for buffer in self._buffers():
                buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length

    @torch.inference_mode()
    def save(self, slot: int) -> State:
        """A slot's positions as bytes: each layer's keys, then its values."""
        parts = [
            buffer[slot, :, : self.lengths[slot]].contiguous().flatten().view(torch.uint8).cpu()
            for buffer in self._buffers()
        ]
        saved: State = torch.cat(parts).numpy()
        return saved

    def halves(self, slot: int, length: int) -> Layers:
        """Keys and values of a slot's first positions, a layer at a time, in IEEE's 16 bits."""
        most = torch.finfo(torch.float16).max
        halves = (
            buffer[slot, :, :length].clamp(-most, most).to(torch.float16).cpu().numpy()
            for buffer in self._buffers()
        )
        return zip(halves, halves, strict=True)  # keys and values take turns

    @torch.inference_mode()
    def load(self, slot: int, state: State, length: int) -> None:
        """Make a slot's content the first `length` positions of what `save` gave; ValueError otherwise."""
        self.lengths[slot] = 0
        parts = [buffer[slot] for buffer in self._buffers()]  # [heads, context, dim] each
        position = sum(part.shape[0] * part.shape[2] * part.element_size() for part in parts)  # bytes of one
        held, surplus = divmod(state.size, position)
        if surplus or not length <= held <= self.slot_layers[0].context:
            raise ValueError(f"{state.size} bytes are not {length} positions of {position} bytes or more")
        data = torch.from_numpy(state)
        sizes = [part.shape[0] * held * part.shape[2] * part.element_size() for part in parts]
        for part, saved in zip(parts, torch.split(data, sizes), strict=True):
            # A copy of its own: the bytes need not lie where this type may.
            whole = saved.clone().view(part.dtype).view(part.shape[0], held, part.shape[2])
            part[:, :length] = whole[:, :length].to(part.device)
        self.lengths[slot] = length

    def _buffers(self) -> Iterator[Tensor]:
        """Keys and values of every layer that has run, [slots, heads, context, dim] each."""
        for layer in self.slot_layers:
            for buffer in (layer.keys, layer.values):
                if buffer is not None:
                    yield buffer


def _give_back(part: Tensor) -> None:
    """Return the whole pages of a contiguous part of a buffer to the kernel, which gives zeros for them."""
    page = mmap.PAGESIZE
    begin = -(-part.data_ptr() // page) * page
    end = (part.data_ptr() + part.nbytes) // page * page
    if end > begin and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
