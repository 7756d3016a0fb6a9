"""A target, or the model of a draft, over a GGUF file through llama.cpp's low-level calls."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from draftd.ipc.errors import ContextOverflow, EngineFailed, UnsupportedModel
from draftd.models import native
from draftd.models.base import Rows, Span, State
from draftd.models.llama_batch import Batch, split, surplus_of
from draftd.models.llama_load import Report, full_precision, load_model, open_context

NO_MEMORY = -2  # what llama_decode gives where memory could not be allocated


class LlamaTarget:
    """models.base.Target over llama.cpp; rows are views of its output, valid until the next forward."""

    def __init__(
        self, path: Path, model: int, slots: int, context: int, threads: int, gpu_layers: int, tiled: bool
    ) -> None:
        self.path = path
        self._model = model
        self.vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.shape = (
            int(llama_cpp.llama_model_n_layer(model)),
            int(llama_cpp.llama_model_n_head_kv(model)),
            int(llama_cpp.llama_model_n_embd(model)),
        )  # as TransformersTarget.shape
        self.slots = slots
        self.context = context
        self.padded = False
        self.even = True  # llama.cpp cuts a batch so where each slot has a buffer of its own
        self._threads = threads
        self._gpu_layers = gpu_layers
        self._tiled = tiled
        self._windowed = llama_cpp.llama_model_n_swa(model) > 0
        self._context = 0  # there while a slot may hold something
        self._open(first=True)
        self._batch = Batch(llama_cpp.llama_n_batch(self._context))
        self._lengths = [0] * slots
        self._removals: set[int] = set()  # slots that llama.cpp still holds more of than _lengths says
        self._spoilt: dict[int, int] = {}  # by slot the position from which on it may hold no numbers

    @staticmethod
    def load(
        path: Path,
        *,
        slots: int,
        context: int,
        threads: int,
        gpu_layers: int = 0,
        extra_bufts: bool = True,
        report: Report | None = None,
    ) -> LlamaTarget:
        """Load a GGUF with `slots` sequences of `context` positions, or of fewer if it was trained on fewer.

        `extra_bufts`: let llama.cpp repack weights for the CPU's matrix instructions (models/probe.py).
        `report` gets the loaded share of the weights, on llama.cpp's thread; what it raises ends the load.
        Raises ModelNotFound, CorruptModel, UnsupportedModel.
        """
        return native.run(_load, path, slots, context, threads, gpu_layers, extra_bufts, report)

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        """Feed many requests in one pass (at most one span a slot); one [rows, vocab] array a span.

        A span that starts before its slot's end replaces what was there. After EngineFailed every slot of the
        call is cut back to where its span started.
        """
        for span in spans:
            self._check(span)
        return native.run(self._forward, spans)

    def truncate(self, slot: int, length: int) -> None:
        """Forget all positions of a slot from `length` on; llama.cpp hears of it with the next forward."""
        if length < self._lengths[slot]:
            self._lengths[slot] = length
            self._removals.add(slot)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `target` equal those of `source`."""
        if length > self._lengths[source]:
            raise ValueError(f"slot {source} holds {self._lengths[source]} positions, not {length}")
        if source != target:
            native.run(self._copy_prefix, source, target, length)

    def save_slot(self, slot: int) -> State | None:
        """llama.cpp's own bytes of a slot; None with a sliding window, whose past positions it leaves out."""
        if self._windowed:
            return None
        return native.run(self._save, slot)

    def load_slot(self, slot: int, state: State, length: int) -> None:
        """Make a slot's content the first `length` positions of what `save_slot` gave."""
        native.run(self._load_state, slot, state, length)

    def drop(self, slots: Sequence[int]) -> None:
        """Empty these slots. llama.cpp's caches are freed as a whole, so once none holds anything."""
        for slot in slots:
            self.truncate(slot, 0)
        if not any(self._lengths):
            native.run(self._drop)

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next forward on."""
        self._threads = count
        native.run(self._set_threads)

    def close(self) -> None:
        """Free the model's memory; a second call does nothing."""
        if self._model:
            native.run(self._free)

    def _check(self, span: Span) -> None:
        if not span.tokens or not 0 <= span.rows <= len(span.tokens):
            raise ValueError(f"a span of {len(span.tokens)} tokens cannot give {span.rows} rows")
        if span.start > self._lengths[span.slot]:
            held = self._lengths[span.slot]
            raise ValueError(f"slot {span.slot} holds {held} positions: a span cannot start at {span.start}")
        if span.start + len(span.tokens) > self.context:
            end = span.start + len(span.tokens)
            raise ContextOverflow(f"{end} tokens do not fit the model's context of {self.context}")

    # ---- on llama.cpp's thread

    def _open(self, first: bool = False) -> None:
        """Make the context, the slots' caches and what llama.cpp computes in, unless it is there."""
        if self._context:
            return
        try:
            handle, self.context = open_context(
                self.path, self._model, self.slots, self.context, self._threads, self._gpu_layers
            )
        except UnsupportedModel as error:
            if first:
                raise
            raise MemoryError(error.message) from None  # what it needs was there before it was dropped
        self._context = handle
        self._memory = llama_cpp.llama_get_memory(handle)

    def _drop(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = 0
            self._removals.clear()
            self._spoilt.clear()

    def _set_threads(self) -> None:
        if self._context:
            llama_cpp.llama_set_n_threads(self._context, self._threads, self._threads)

    def _forward(self, spans: Sequence[Span]) -> list[Rows]:
        self._open()
        for span in spans:
            self.truncate(span.slot, span.start)
        self._remove()
        passes = split(spans, self._batch.size)
        parts: list[list[Rows]] = [[] for _ in spans]
        for pieces in passes:
            fed = [span for _, span in pieces]
            surplus = [0] * len(fed)
            if pieces is passes[-1]:
                surplus = surplus_of(fed, self._tiled, self.context, self._batch.size)
            first_rows = self._batch.fill(fed, surplus)
            self._removals |= {span.slot for (_, span), more in zip(pieces, surplus, strict=True) if more}
            if code := llama_cpp.llama_decode(self._context, self._batch.struct):
                self._fail(spans, code)
            for (index, span), first in zip(pieces, first_rows, strict=True):
                self._lengths[span.slot] = span.start + len(span.tokens)
                if span.rows:
                    rows = self._rows(first, span.rows)
                    self._look_at(span, rows)
                    parts[index].append(rows if len(passes) == 1 else rows.copy())
        return [self._join(part) for part in parts]

    def _rows(self, first: int, rows: int) -> Rows:
        """Rows are in the order of the batch, so the first one's address is enough."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, first)
        return _view(ctypes.addressof(pointer.contents), rows, self.vocab)

    def _look_at(self, span: Span, rows: Rows) -> None:
        """Note where a pass began that has a row of no numbers; where one logit of a row is none, all are.

        Rows before it in the same pass had its keys masked only, so theirs may be none either.
        """
        if np.isnan(rows[:, 0]).any():
            self._spoilt[span.slot] = min(span.start, self._spoilt.get(span.slot, span.start))

    def _join(self, parts: list[Rows]) -> Rows:
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.vocab), np.float32)

    def _remove(self) -> None:
        for slot in self._removals:
            llama_cpp.llama_memory_seq_rm(self._memory, slot, self._lengths[slot], -1)
        self._removals.clear()
        if any(self._lengths[slot] <= first for slot, first in self._spoilt.items()):
            self._cleanse()

    def _cleanse(self) -> None:
        """Make zeros of what was cut off: llama.cpp would only mask it, and masked NaN is NaN all the same.

        Its buffers are cleared as a whole, so what else they hold is saved and loaded.
        """
        held = [slot for slot, length in enumerate(self._lengths) if length]
        if held and self._windowed:
            return  # it can't be saved: until nothing is held
        self._spoilt = {slot: first for slot, first in self._spoilt.items() if self._lengths[slot] > first}
        saved = [(slot, self._save(slot), self._lengths[slot]) for slot in held]
        llama_cpp.llama_memory_clear(self._memory, True)
        for slot, state, length in saved:
            self._load_state(slot, state, length)

    def _fail(self, spans: Sequence[Span], code: int) -> None:
        for span in spans:
            self._lengths[span.slot] = min(self._lengths[span.slot], span.start)
            llama_cpp.llama_memory_seq_rm(self._memory, span.slot, span.start, -1)
        tokens = sum(len(span.tokens) for span in spans)
        reason = native.complaints() or "it gave no reason"
        kind = MemoryError if code == NO_MEMORY else EngineFailed
        raise kind(f"llama.cpp failed to feed {tokens} tokens to {self.path.name}: {reason} ({code})")

    def _copy_prefix(self, source: int, target: int, length: int) -> None:
        if not self._windowed:
            # By its own copy llama.cpp would move the bytes with its next pass only: what is loaded into
            # either slot before then, or saved of the new one, would be mixed up.
            self._load_state(target, self._save(source), length)
            return
        self._open()
        self._remove()
        llama_cpp.llama_memory_seq_rm(self._memory, target, 0, -1)
        # Between the slots' buffers llama.cpp copies a sequence whole or not at all.
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        llama_cpp.llama_memory_seq_rm(self._memory, target, length, -1)
        self._lengths[target] = length

    def _save(self, slot: int) -> State:
        self._open()
        self._remove()
        state = np.empty(llama_cpp.llama_state_seq_get_size(self._context, slot), np.uint8)
        written = llama_cpp.llama_state_seq_get_data(self._context, _bytes(state), state.size, slot)
        if written == 0:
            raise EngineFailed(f"llama.cpp could not save slot {slot}: {native.complaints() or 'no reason'}")
        return state[:written]

    def _load_state(self, slot: int, state: State, length: int) -> None:
        self._open()
        self._remove()
        self._lengths[slot] = 0
        llama_cpp.llama_memory_seq_rm(self._memory, slot, 0, -1)
        native.complaints(clear=True)
        state = np.ascontiguousarray(state)
        read = llama_cpp.llama_state_seq_set_data(self._context, _bytes(state), state.size, slot)
        held = llama_cpp.llama_memory_seq_pos_max(self._memory, slot) + 1
        if read == 0 or held < length:
            llama_cpp.llama_memory_seq_rm(self._memory, slot, 0, -1)
            reason = native.complaints() or f"it holds {held} positions, not {length}"
            raise ValueError(f"llama.cpp refused the state of {state.size} bytes: {reason}")
        llama_cpp.llama_memory_seq_rm(self._memory, slot, length, -1)
        self._lengths[slot] = length

    def _free(self) -> None:
        self._drop()
        llama_cpp.llama_model_free(self._model)
        self._model = 0


@lru_cache(maxsize=256)  # the output seldom moves, so the same views come again
def _view(address: int, rows: int, vocab: int) -> Rows:
    buffer: Any = (ctypes.c_float * (rows * vocab)).from_address(address)
    return np.ndarray((rows, vocab), np.dtype(np.float32), buffer)


def _bytes(state: State) -> Any:
    return ctypes.cast(state.ctypes.data, ctypes.POINTER(ctypes.c_uint8))


def _load(
    path: Path,
    slots: int,
    context: int,
    threads: int,
    gpu_layers: int,
    extra_bufts: bool,
    report: Report | None,
) -> LlamaTarget:
    model = load_model(path, gpu_layers=gpu_layers, extra_bufts=extra_bufts, report=report)
    try:
        tiled = extra_bufts and not gpu_layers and not full_precision(model)
        return LlamaTarget(path, model, slots, context, threads, gpu_layers, tiled)
    except BaseException:
        llama_cpp.llama_model_free(model)
        raise
