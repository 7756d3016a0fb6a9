from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM

from draftd.ipc.errors import ContextOverflow, CorruptModel, DraftdError, ModelNotFound, UnsupportedModel
from draftd.models import llama_load
from draftd.models.base import Span
from draftd.models.llama_batch import split
from draftd.models.llama_cpp import LlamaTarget
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

CONTEXT = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder / "model")
    write_gguf(folder / "model", folder / "model.gguf")
    write_gguf(folder / "model", folder / "q8.gguf", "q8_0")
    _write_gemma3(folder / "window.gguf")
    return folder


@pytest.fixture(params=["model.gguf", "q8.gguf", "window.gguf"])
def target(folder: Path, request: pytest.FixtureRequest) -> Iterator[LlamaTarget]:
    target = LlamaTarget.load(folder / request.param, slots=4, context=CONTEXT, threads=1)
    yield target
    target.close()


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)


def close(target: LlamaTarget, one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for rounding: llama.cpp computes one row and many by different code, of q8_0 in 8 bits."""
    tolerance = 0.06 if target.path.name == "q8.gguf" else 1e-3
    return bool(np.abs(one - other).max() < tolerance * np.abs(other).max())


def fresh(target: LlamaTarget, tokens: list[int], rows: int = 1, slot: int = 3) -> np.ndarray:
    """The rows of a prefill from nothing, in a slot that the test does not use otherwise."""
    target.truncate(slot, 0)
    return target.forward([Span(slot, 0, tokens, rows)])[0].copy()


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


def test_the_context_is_no_longer_than_trained(folder: Path) -> None:
    target = LlamaTarget.load(folder / "model.gguf", slots=1, context=5000, threads=1)
    assert target.context == 1024
    target.close()
    target.close()


def test_progress_is_reported(folder: Path) -> None:
    seen: list[float] = []
    LlamaTarget.load(folder / "q8.gguf", slots=1, context=64, threads=1, report=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_what_a_report_raises_ends_the_load(folder: Path) -> None:
    def report(_: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        LlamaTarget.load(folder / "model.gguf", slots=1, context=64, threads=1, report=report)


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


# ---- files that cannot be used


def load(path: Path) -> None:
    LlamaTarget.load(path, slots=1, context=64, threads=1).close()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no model file .*gone.gguf: pull"):
        load(tmp_path / "gone.gguf")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="cannot read the model file"):
        load(tmp_path)


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(CorruptModel, match="is not a GGUF file: remove it"):
        load(tmp_path / "page.gguf")


def test_garbage_after_the_magic(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + random.Random(0).randbytes(400))
    with pytest.raises(CorruptModel, match=r"bad.gguf is damaged or incomplete: remove it .*\("):
        load(tmp_path / "bad.gguf")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file(folder: Path, tmp_path: Path, share: float) -> None:
    whole = (folder / "model.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CorruptModel, match=r"half.gguf is damaged or incomplete"):
        load(tmp_path / "half.gguf")


def test_an_unknown_architecture(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "new.gguf", "tomorrow")
    writer.add_block_count(1)
    _write(writer, {"token_embd.weight": np.zeros((32, 32), np.float32)})
    with pytest.raises(UnsupportedModel, match=r"does not know the model in .*new.gguf: .*'tomorrow'"):
        load(tmp_path / "new.gguf")


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UnsupportedModel, match=r"GiB of memory and 0\.0 GiB are free"):
        load(folder / "model.gguf")


def test_a_recurrent_model_is_refused(tmp_path: Path) -> None:
    _write_mamba(tmp_path / "mamba.gguf")
    with pytest.raises(UnsupportedModel, match=r"mamba.gguf cannot be used with speculation: its recurrent"):
        load(tmp_path / "mamba.gguf")


def _write(writer: GGUFWriter, tensors: dict[str, np.ndarray]) -> None:
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_gemma3(path: Path) -> None:
    """Two layers, the first with a window of 16 positions."""
    width, hidden, heads, vocab, dim = 64, 128, 2, 272, 32
    random_ = np.random.default_rng(0)
    writer = GGUFWriter(path, "gemma3")
    writer.add_block_count(2)
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(16)
    writer.add_vocab_size(vocab)
    matrices = {"token_embd": (vocab, width)}
    norms = {"output_norm": width}
    for layer in range(2):
        block = f"blk.{layer}."
        matrices |= {
            f"{block}attn_q": (heads * dim, width),
            f"{block}attn_k": (dim, width),
            f"{block}attn_v": (dim, width),
            f"{block}attn_output": (width, heads * dim),
            f"{block}ffn_gate": (hidden, width),
            f"{block}ffn_up": (hidden, width),
            f"{block}ffn_down": (width, hidden),
        }
        wide = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        norms |= {f"{block}{name}": width for name in wide}
        norms |= {f"{block}{name}": dim for name in ("attn_q_norm", "attn_k_norm")}
    tensors = {
        f"{name}.weight": random_.standard_normal(shape, np.float32) * np.float32(0.3)
        for name, shape in matrices.items()
    }
    tensors |= {f"{name}.weight": np.ones(size, np.float32) for name, size in norms.items()}
    _write(writer, tensors)


def _write_mamba(path: Path) -> None:
    width, inner, state, rank, conv, vocab = 32, 64, 16, 2, 4, 64
    writer = GGUFWriter(path, "mamba")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_vocab_size(vocab)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ssm_in.weight": (2 * inner, width),
        "blk.0.ssm_conv1d.weight": (inner, conv),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": (inner, rank),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (inner, state),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (width, inner),
    }
    _write(writer, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


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
