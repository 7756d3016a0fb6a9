"""What slots of the llama.cpp target hold: rolled back, padded, written over, copied, saved."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from draftd.models.base import Span
from draftd.models.llama_cpp import LlamaTarget
from tests.models.llama_rows import CONTEXT, close, fresh, text
from tests.tiny_gguf import write_gguf


def test_every_rollback_equals_a_fresh_prefill(target: LlamaTarget) -> None:
    dice = random.Random(1)
    held: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(60):
        slot = dice.randrange(3)
        tokens = held[slot]
        new = text(dice.randint(1, 6), step)
        if len(tokens) + len(new) > 60:
            tokens.clear()
            target.truncate(slot, 0)
        row = target.forward([Span(slot, len(tokens), new, 1)])[0].copy()
        tokens += new
        assert close(target, row, fresh(target, tokens)), f"step {step}"
        keep = dice.randint(0, len(tokens))
        del tokens[keep:]
        target.truncate(slot, keep)


@pytest.mark.parametrize(("fed", "padded"), [(3, 4), (12, 12), (13, 16), (15, 16), (29, 32)])
def test_a_padded_pass_leaves_nothing_behind(target: LlamaTarget, fed: int, padded: int) -> None:
    """A quantised model is fed whole tiles; what follows must not see the tokens that fill them."""
    tokens = text(fed + 2)
    target._tiled = True  # for the other models too: what they compute is the same
    first = target.forward([Span(0, 0, tokens[:fed], fed)])[0].copy()
    assert target._batch.struct.n_tokens == padded
    assert close(target, first, fresh(target, tokens[:fed], fed, slot=1))
    assert close(target, target.forward([Span(0, fed, tokens[fed:], 1)])[0].copy(), fresh(target, tokens))
    full = text(CONTEXT)
    target.forward([Span(1, 0, full[: CONTEXT - fed], 0)])
    last = target.forward([Span(1, CONTEXT - fed, full[CONTEXT - fed :], 1)])[0].copy()
    assert target._batch.struct.n_tokens == fed  # there was no room for more
    assert close(target, last, fresh(target, full))


def test_spans_of_nearly_one_length_are_filled_up_to_one(target: LlamaTarget) -> None:
    tokens = [text(12, seed) for seed in range(3)]
    for widths, fed in (((4, 3, 2), 12), ((1, 2, 2), 6), ((5, 3, 3), 11), ((2, 2, 2), 6)):
        spans = [Span(slot, 0, tokens[slot][:width], width) for slot, width in enumerate(widths)]
        found = [rows.copy() for rows in target.forward(spans)]
        assert target._batch.struct.n_tokens == fed  # four more to feed is too much
        after = target.forward([Span(slot, width, [7], 1) for slot, width in enumerate(widths)])
        after = [row.copy() for row in after]
        for slot, width in enumerate(widths):
            assert close(target, found[slot], fresh(target, tokens[slot][:width], width, slot=slot))
            assert close(target, after[slot], fresh(target, [*tokens[slot][:width], 7], slot=slot))


def test_where_a_slot_is_nearly_full_nothing_is_filled_up(target: LlamaTarget) -> None:
    full = text(CONTEXT)
    target.forward([Span(1, 0, full[: CONTEXT - 1], 0)])
    last = target.forward([Span(0, 0, [5, 6, 7], 3), Span(1, CONTEXT - 1, full[-1:], 1)])[1].copy()
    assert target._batch.struct.n_tokens == 4
    assert close(target, last, fresh(target, full, slot=1))


def test_a_rollback_far_beyond_the_window(folder: Path) -> None:
    target = LlamaTarget.load(folder / "window.gguf", slots=2, context=1000, threads=1)
    tokens = text(1000)
    target.forward([Span(0, 0, tokens, 0)])
    target.truncate(0, 100)
    row = target.forward([Span(0, 100, [5], 1)])[0].copy()
    assert close(target, row, fresh(target, [*tokens[:100], 5], slot=1))
    target.close()


def test_a_span_may_write_over_what_was_there(target: LlamaTarget) -> None:
    target.forward([Span(0, 0, text(10), 0)])
    row = target.forward([Span(0, 4, [7, 8], 1)])[0].copy()
    assert close(target, row, fresh(target, [*text(10)[:4], 7, 8]))


@pytest.mark.parametrize("length", [1, 13, 30])
def test_copy_prefix(target: LlamaTarget, length: int) -> None:
    tokens = text(30)
    target.forward([Span(0, 0, tokens, 0), Span(1, 0, text(12, 9), 0)])
    target.copy_prefix(0, 1, length)
    target.truncate(0, length // 2)  # and the two are independent from now on
    row = target.forward([Span(1, length, [5], 1)])[0].copy()
    assert close(target, row, fresh(target, [*tokens[:length], 5]))
    row = target.forward([Span(0, length // 2, [6], 1)])[0].copy()
    assert close(target, row, fresh(target, [*tokens[: length // 2], 6]))


@pytest.mark.parametrize("length", [1, 13, 30])
def test_a_saved_slot_gives_the_same_rows_in_another(target: LlamaTarget, length: int) -> None:
    tokens = text(30)
    target.forward([Span(0, 0, [*tokens, 7, 8], 0), Span(1, 0, text(12, 9), 0)])
    target.truncate(0, 30)  # what was rolled back is not saved
    state = target.save_slot(0)
    if "window" in target.path.name:
        assert state is None, "llama.cpp saves no more of it than the window"
        return
    assert state is not None
    expected = target.forward([Span(0, length, [5], 1)])[0].copy()
    target.truncate(0, 0)
    target.load_slot(1, state, length)
    row = target.forward([Span(1, length, [5], 1)])[0].copy()
    assert np.array_equal(row, expected)


def test_a_state_that_cannot_be_this_models_is_refused(target: LlamaTarget) -> None:
    target.forward([Span(0, 0, text(30), 0)])
    if (state := target.save_slot(0)) is None:
        return  # a model with a window saves nothing
    for wrong, length in ((state[: len(state) // 2], 10), (np.zeros(64, np.uint8), 1), (state, 31)):
        with pytest.raises(ValueError, match=r"llama\.cpp refused the state"):
            target.load_slot(1, wrong, length)
        row = target.forward([Span(1, 0, text(9), 1)])[0].copy()
        assert close(target, row, fresh(target, text(9)))
        target.truncate(1, 0)


def test_copy_prefix_of_more_than_there_is(target: LlamaTarget) -> None:
    target.forward([Span(0, 0, [1, 2, 3], 0)])
    with pytest.raises(ValueError, match="holds 3 positions, not 4"):
        target.copy_prefix(0, 1, 4)


def test_what_is_copied_does_not_change_with_what_is_loaded_right_after(target: LlamaTarget) -> None:
    """llama.cpp copies between buffers with the next pass, but loads at once."""
    one, other = text(30), text(30, 9)
    target.forward([Span(2, 0, other, 0)])
    if (state := target.save_slot(2)) is None:
        return  # a model with a window loads nothing
    for loaded in (0, 1):
        target.truncate(0, 0)
        target.forward([Span(0, 0, one, 0)])
        target.copy_prefix(0, 1, 13)
        target.load_slot(loaded, state, 30)
        expected = {0: one, 1: one[:13]} | {loaded: other}
        for slot, tokens in expected.items():
            row = target.forward([Span(slot, len(tokens), [5], 1)])[0].copy()
            assert close(target, row, fresh(target, [*tokens, 5])), f"slot {slot}, loaded {loaded}"


def test_a_copy_can_be_saved_at_once(target: LlamaTarget) -> None:
    target.forward([Span(0, 0, text(30), 0), Span(1, 0, text(20, 9), 0)])
    target.copy_prefix(0, 1, 13)
    if (state := target.save_slot(1)) is None:
        return
    target.load_slot(2, state, 13)
    row = target.forward([Span(2, 13, [5], 1)])[0].copy()
    assert close(target, row, fresh(target, [*text(30)[:13], 5]))


def test_only_the_last_of_several_passes_is_padded(target: LlamaTarget) -> None:
    target._tiled, target._batch.size = True, 30
    tokens = text(59)
    rows = target.forward([Span(0, 0, tokens, 59)])[0].copy()
    target._tiled, target._batch.size = False, 512
    assert close(target, rows, fresh(target, tokens, 59))
    assert close(target, target.forward([Span(0, 59, [5], 1)])[0].copy(), fresh(target, [*tokens, 5]))


def test_a_fault_of_the_model_in_one_request_reaches_no_later_one(folder: Path, tmp_path: Path) -> None:
    """Here a token of NaN: its keys stood behind the next request, which is shorter."""
    bad, long = 260, text(30, 1)
    shutil.copytree(folder / "model", tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.embed_tokens.weight"][bad] = torch.nan
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    path = write_gguf(tmp_path / "model", tmp_path / "nan.gguf")
    target = LlamaTarget.load(path, slots=3, context=CONTEXT, threads=1)
    target.forward([Span(1, 0, long, 0)])
    for prefix in ([], text(2)):  # of the next request, which stands there already
        if prefix:
            target.forward([Span(0, 0, prefix, 0)])
        rows = target.forward([Span(0, len(prefix), [*text(3), bad, *text(20)], 20)])[0]
        assert np.isnan(rows).all()
        target.truncate(0, len(prefix))
        row = target.forward([Span(0, len(prefix), text(5)[len(prefix) :], 1)])[0].copy()
        assert close(target, row, fresh(target, text(5), slot=2))
    row = target.forward([Span(1, 30, [5], 1)])[0].copy()
    assert close(target, row, fresh(target, [*long, 5], slot=2)), "what another slot holds stays"
    target.close()
