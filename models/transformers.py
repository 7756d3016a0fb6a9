"""A target run by transformers on CUDA or the CPU, many requests in one forward over a slot cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from draftd.ipc.errors import ContextOverflow, InvalidRequest
from draftd.models import attention
from draftd.models import transformers_load as loading
from draftd.models.base import Layers, Rows, Span, State, padded_passes
from draftd.models.slots import SlotCache


class TransformersTarget:
    """models/base.py's Target over any decoder-only transformers model whose cache can be rolled back."""

    def __init__(self, model: Any, *, slots: int, context: int) -> None:
        self._model = model
        self._config = model.config.get_text_config(decoder=True)
        self.slots = slots
        self.even, self.padded = False, True
        self.context = min(context, loading.longest_context(self._config))
        self.vocab = int(model.get_output_embeddings().weight.shape[0])
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.dtype: torch.dtype = model.dtype
        self._additive = self._config._attn_implementation != "sdpa"  # which takes booleans
        self._layer_types = frozenset(getattr(self._config, "layer_types", None) or ())
        grouped = self._config._attn_implementation == attention.NAME
        shown = attention.whole if grouped else int
        self._cache = SlotCache(self._config.num_hidden_layers, slots, shown(self.context), shown)
        self._keys = torch.arange(shown(self.context), device=self.device)
        self._host = torch.empty(0)  # pinned memory that takes the rows of a GPU

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        slots: int,
        context: int,
        dtype: str = "bfloat16",
        device: str = "auto",
        device_map: str | dict[str, Any] | None = None,
        threads: int | None = None,
        report: Callable[[float, str], None] | None = None,
    ) -> TransformersTarget:
        """Load a model's directory and try a rollback on it.

        `context` shrinks to what the model knows; `device_map` is the library's own, for several GPUs, and
        goes before `device`; `threads` are the CPU's; `report` hears a fraction and a stage. Raises
        ModelNotFound, CorruptModel, InvalidConfig, EngineFailed (memory), UnsupportedModel with the reason.
        """
        tell = report or (lambda fraction, stage: None)
        if threads:
            torch.set_num_threads(threads)
        model = loading.load_model(
            path, dtype, device, device_map, lambda done: tell(0.9 * done, "loading the target")
        )
        target = cls(model, slots=slots, context=context)
        tell(0.9, "checking the target")
        loading.check_rollback(target, model, path)
        tell(1.0, "target ready")
        return target

    @property
    def lengths(self) -> Sequence[int]:
        """Valid positions by slot."""
        return self._cache.lengths

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, heads of keys and width, by which two files of one model are known."""
        config = self._config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return int(config.num_hidden_layers), int(heads), int(config.hidden_size)

    @torch.inference_mode()
    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        """Feed many requests; one [rows, vocab] array a span, valid until the next forward.

        A start below a slot's length rolls it back first. Raises ContextOverflow, InvalidRequest (a token the
        model doesn't have), ValueError (a slot, a start or a number of rows that can't be).
        """
        self._check(spans)
        rows: dict[int, Rows] = {}
        before = 0
        self._pin(sum(span.rows for span in spans))
        for group in group_by_width(spans):
            logits = self._fetch(self._pass(group), before)
            before += len(logits)
            ends = np.cumsum([span.rows for span in group])
            rows |= {span.slot: logits[end - span.rows : end] for span, end in zip(group, ends, strict=True)}
        return [rows[span.slot] for span in spans]

    def truncate(self, slot: int, length: int) -> None:
        """Forget all positions of a slot from `length` on, in O(1)."""
        self._cache.truncate(slot, length)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Make the first `length` positions of slot `target` equal those of `source`."""
        self._cache.copy_prefix(source, target, length)

    def save_slot(self, slot: int) -> State:
        """All of a slot's keys and values, copied to the CPU."""
        return self._cache.save(slot)

    def keys_and_values(self, slot: int, length: int) -> Layers:
        """What a slot holds of its first `length` positions, copied to the CPU in IEEE's 16 bits."""
        return self._cache.halves(slot, length)

    def load_slot(self, slot: int, state: State, length: int) -> None:
        """Make a slot's content the first `length` positions of what `save_slot` gave."""
        self._cache.load(slot, state, length)

    def drop(self, slots: Sequence[int]) -> None:
        """Empty these slots and give their memory back to the system, where they lie in the CPU's."""
        self._cache.drop(slots)

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next forward on; call it on the forward's thread."""
        torch.set_num_threads(count)

    def close(self) -> None:
        """Free the model's memory; the target is of no use afterwards."""
        del self._model, self._cache, self._host, self._keys
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self, spans: Sequence[Span]) -> None:
        seen = set()
        for span in spans:
            if not 0 <= span.slot < self.slots or span.slot in seen:
                raise ValueError(f"slot {span.slot} is given twice or is not below {self.slots}")
            seen.add(span.slot)
            width, held = len(span.tokens), self.lengths[span.slot]
            if not 0 <= span.start <= held:
                raise ValueError(f"slot {span.slot} holds {held} positions and can't go on at {span.start}")
            if not 0 <= span.rows <= width or width == 0:
                raise ValueError(f"slot {span.slot} has {width} tokens, not {span.rows} rows of logits")
            if span.start + width > self.context:
                raise ContextOverflow(
                    f"the request needs {span.start + width} positions, the context has {self.context}: "
                    "shorten the prompt or ask for fewer tokens"
                )
            if not 0 <= min(span.tokens) <= max(span.tokens) < self.vocab:
                raise InvalidRequest(f"a token id is outside the model's vocabulary of {self.vocab}")

    def _pass(self, spans: Sequence[Span]) -> Tensor:
        """One forward of spans padded to the widest: logits of their wanted rows, one after another."""
        step = self._cache.begin(spans)
        tokens, positions, wanted = [], [], []
        for span in spans:
            end, padding = span.start + len(span.tokens), step.width - len(span.tokens)
            # Padding repeats the last position, so it sees keys that are real; the cache doesn't store it.
            tokens.append([*span.tokens, *[span.tokens[-1]] * padding])
            positions.append([*range(span.start, end), *[end - 1] * padding])
            wanted.append([end - span.rows <= at < end for at in range(span.start, span.start + step.width)])
            self._cache.lengths[span.slot] = span.start
        ids, at = torch.tensor([tokens, positions], device=self.device)  # [spans, width] each
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=self._mask(at, step.length),
            position_ids=at,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted),  # indices of the CPU's go with rows on any GPU
        ).logits
        self._cache.end(spans)
        return logits

    def _mask(self, positions: Tensor, length: int) -> Tensor | dict[str, Tensor]:
        """Which of the first `length` keys a query sees, [spans, 1, width, length]; by layer type if any."""
        at = positions[:, None, :, None]
        keys = self._keys[:length]
        causal = keys <= at
        masks = {}
        for kind in self._layer_types or {loading.only_layer_type(self._config)}:
            mask = causal
            if kind == "sliding_attention":
                mask = causal & (keys > at - self._config.sliding_window)
            elif kind == "chunked_attention":
                size = self._config.attention_chunk_size
                mask = causal & (keys // size == at // size)
            if self._additive:
                zeros = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
                mask = zeros.masked_fill_(~mask, torch.finfo(self.dtype).min)
            masks[kind] = mask
        return masks if self._layer_types else masks.popitem()[1]

    def _pin(self, rows: int) -> None:
        if self.device.type == "cuda" and self._host.shape[0] < rows:
            self._host = torch.empty(rows, self.vocab, pin_memory=True)

    def _fetch(self, logits: Tensor, before: int) -> Rows:
        """The rows as an array: a view of what the CPU computed where it is float32, else one copy."""
        # Where they are: torch would copy 16 bits to memory that is not pinned, and convert them there.
        logits = logits.float()
        if logits.device.type == "cpu":
            return logits.numpy()
        host = self._host[before : before + len(logits)]
        return host.copy_(logits).numpy()


def group_by_width(spans: Sequence[Span]) -> list[list[Span]]:
    """Split spans where the padding saved is worth another pass; each group in the order of its slots."""
    left = iter(sorted(spans, key=lambda span: -len(span.tokens)))
    passes = padded_passes([len(span.tokens) for span in spans])
    return [sorted(islice(left, len(each)), key=lambda span: span.slot) for each in passes]
