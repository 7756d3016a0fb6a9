"""The passes of the llama.cpp target, of a plain, a quantised and a windowed model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from draftd.ipc.errors import ContextOverflow, DraftdError
from draftd.models import llama_load
from draftd.models.base import Span
from draftd.models.llama_batch import split
from draftd.models.llama_cpp import LlamaTarget
from tests.models.llama_rows import CONTEXT, close, fresh, text


def test_logits_equal_those_of_transformers(folder: Path) -> None:
    target = LlamaTarget.load(folder / "model.gguf", slots=2, context=CONTEXT, threads=1)
    reference = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokens = text(40)
    with torch.no_grad():
        wanted = reference(torch.tensor([tokens])).logits[0].numpy()
    assert target.vocab == wanted.shape[1]
    np.testing.assert_allclose(target.forward([Span(0, 0, tokens, 40)])[0], wanted, atol=1e-3)
    for position, token in enumerate(tokens):
        row = target.forward([Span(1, position, [token], 1)])[0]
        np.testing.assert_allclose(row[0], wanted[position], atol=1e-3)
    target.close()


def test_spans_of_different_lengths_in_one_pass(target: LlamaTarget) -> None:
    texts = {slot: text(20, slot) for slot in range(3)}
    cuts = {0: 3, 1: 17, 2: 9}
    target.forward([Span(slot, 0, texts[slot][:cut], 0) for slot, cut in cuts.items()])
    rows = target.forward(
        [Span(slot, cut, texts[slot][cut:], min(5, 20 - cut)) for slot, cut in cuts.items()]
    )
    rows = [row.copy() for row in rows]
    for slot, cut in cuts.items():
        assert rows[slot].shape == (min(5, 20 - cut), target.vocab)
        assert close(target, rows[slot], fresh(target, texts[slot], len(rows[slot])))


def test_a_span_without_rows_gives_an_empty_array(target: LlamaTarget) -> None:
    empty, one = target.forward([Span(0, 0, [1, 2], 0), Span(1, 0, [3], 1)])
    assert empty.shape == (0, target.vocab)
    assert one.shape == (1, target.vocab)


def test_batches_larger_than_llama_cpp_takes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_load, "_BATCH", 16)
    small = LlamaTarget.load(folder / "model.gguf", slots=3, context=CONTEXT, threads=1)
    monkeypatch.undo()
    large = LlamaTarget.load(folder / "model.gguf", slots=3, context=CONTEXT, threads=1)
    spans = [Span(0, 0, text(21), 18), Span(1, 0, text(40, 1), 1), Span(2, 0, text(3, 2), 0)]
    for one, other in zip(small.forward(spans), large.forward(spans), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-3)
    small.close()
    large.close()


def test_rows_are_views_and_not_copies(target: LlamaTarget) -> None:
    (rows,) = target.forward([Span(0, 0, [1, 2, 3], 2)])
    before = rows.copy()
    target.forward([Span(1, 0, [4, 5, 6], 2)])
    assert not np.array_equal(rows, before)


def test_a_full_slot_beside_full_slots(target: LlamaTarget) -> None:
    for slot in range(4):
        target.forward([Span(slot, 0, text(CONTEXT, slot), 1)])
    for slot in range(4):
        with pytest.raises(ContextOverflow, match=f"{CONTEXT + 1} tokens do not fit"):
            target.forward([Span(slot, CONTEXT, [1], 1)])


def test_a_gap_is_refused(target: LlamaTarget) -> None:
    with pytest.raises(ValueError, match="cannot start at 5"):
        target.forward([Span(0, 5, [1], 1)])


def test_a_failed_pass_leaves_the_slot_usable(target: LlamaTarget) -> None:
    target.forward([Span(0, 0, [1, 2], 0)])
    with pytest.raises(DraftdError, match=r"llama.cpp failed to feed 2 tokens to \w+.gguf: .*invalid token"):
        target.forward([Span(0, 2, [3, target.vocab], 1)])
    with pytest.raises(ValueError, match="cannot start at 3"):
        target.forward([Span(0, 3, [4], 1)])
    row = target.forward([Span(0, 2, [4], 1)])[0].copy()
    assert close(target, row, fresh(target, [1, 2, 4]))


def test_want_of_memory_has_an_error_of_its_own(target: LlamaTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("llama_cpp.llama_decode", lambda *_: -2)  # GGML_STATUS_ALLOC_FAILED
        with pytest.raises(MemoryError, match="failed to feed 1 tokens"):
            target.forward([Span(0, 0, [1], 1)])
    assert target.forward([Span(0, 0, [1], 1)])[0].shape == (1, target.vocab)


def test_memory_that_was_given_back_and_is_taken_since(
    target: LlamaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.drop(range(target.slots))
    with monkeypatch.context() as patched:
        patched.setattr("llama_cpp.llama_init_from_model", lambda *_: None)
        with pytest.raises(MemoryError, match=f"cannot make 4 slots of {CONTEXT} positions"):
            target.forward([Span(0, 0, [1], 1)])
    assert target.forward([Span(0, 0, [1], 1)])[0].shape == (1, target.vocab)


def test_torch_and_llama_cpp_take_turns(folder: Path) -> None:
    target = LlamaTarget.load(folder / "q8.gguf", slots=1, context=CONTEXT, threads=2)
    matrix = torch.randn(256, 256, dtype=torch.bfloat16)
    first = None
    for _ in range(8):
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        target.truncate(0, 0)
        rows = target.forward([Span(0, 0, text(64), 64)])[0].copy()
        first = rows if first is None else first
        np.testing.assert_array_equal(rows, first)
    assert torch.isfinite(matrix).all()
    target.close()


def test_spans_are_laid_by_slot_whatever_their_order() -> None:
    """llama.cpp computes slots in one go only where each follows the last: else four cost two passes."""
    spans = [Span(2, 0, [1, 2, 3], 1), Span(0, 4, [5], 1), Span(3, 0, [6, 7], 2), Span(1, 0, [8], 0)]
    (whole,) = split(spans, 7)
    assert [(index, span.slot) for index, span in whole] == [(1, 0), (3, 1), (0, 2), (2, 3)]
    pieces = [piece for cut in split(spans, 3) for piece in cut]
    assert [span.slot for _, span in pieces] == sorted(span.slot for _, span in pieces)
    for index, span in enumerate(spans):
        mine = [piece for at, piece in pieces if at == index]
        assert [token for piece in mine for token in piece.tokens] == span.tokens
        assert sum(piece.rows for piece in mine) == span.rows
