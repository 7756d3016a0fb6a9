"""What a target in transformers holds, lent to a draft in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from draftd.daemon.settings import load as load_settings
from draftd.models import lending
from draftd.models.base import Layers, Span, State
from draftd.models.catalog import load_catalog
from draftd.models.convert import ensure_transformers
from draftd.models.fetch import cached_path
from draftd.models.groups import Row
from draftd.models.lending import TRIAL, Layout, Lender, between
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.transformers import TransformersTarget
from tests.models.targets import TARGET, tokens
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

A, B = tokens(40, 1), tokens(40, 2)


def opened(path: Path) -> TransformersTarget:
    return TransformersTarget.load(path, **TARGET)  # type: ignore[arg-type]


@pytest.fixture
def holder(folder: Path) -> Iterator[TransformersTarget]:
    target = opened(folder / "model")
    yield target
    target.close()


@pytest.fixture
def draft(folder: Path) -> Iterator[LlamaTarget]:
    model = LlamaTarget.load(folder / "q8.gguf", slots=4, context=128, threads=1)
    yield model
    model.close()


def next_row(draft: LlamaTarget, slot: int, at: int, text: Sequence[int] = (65,)) -> Row:
    row: Row = draft.forward([Span(slot, at, text, 1)])[0][0].copy()
    return row


def own_row(draft: LlamaTarget, slot: int, text: Sequence[int]) -> Row:
    draft.forward([Span(slot, 0, text, 1)])
    return next_row(draft, slot, len(text))


def lender_of(target: object, draft: LlamaTarget) -> Lender:
    lender = between(target, draft)
    assert lender is not None
    return lender


@pytest.mark.parametrize("slot", [0, 2])
def test_what_is_lent_is_what_the_draft_would_have_read(
    holder: TransformersTarget, draft: LlamaTarget, slot: int
) -> None:
    read, other = own_row(draft, slot, A), own_row(draft, slot, B)
    lender = lender_of(holder, draft)
    holder.forward([Span(slot, 0, A, 1)])
    assert lender.held(slot) == len(A)
    assert lender.lend(slot, A) == len(A)
    lent = next_row(draft, slot, len(A))
    assert np.abs(lent - read).max() < 0.2 * np.abs(other - read).max()
    assert np.corrcoef(lent, read)[0, 1] > 0.999


def test_the_keys_are_the_targets_and_not_read_from_the_tokens(
    holder: TransformersTarget, draft: LlamaTarget
) -> None:
    lender = lender_of(holder, draft)
    holder.forward([Span(1, 0, A, 1)])
    lender.lend(1, A)
    holder.forward([Span(1, 0, B, 1)])
    lender.lend(1, A)  # the tokens are said to be others than those that the target holds
    lent = next_row(draft, 1, len(A))
    assert np.corrcoef(lent, own_row(draft, 1, B))[0, 1] > 0.99


def test_other_slots_keep_what_they_hold(holder: TransformersTarget, draft: LlamaTarget) -> None:
    draft.forward([Span(3, 0, B, 1)])
    before = next_row(draft, 3, len(B))
    holder.forward([Span(0, 0, A, 1)])
    lender_of(holder, draft).lend(0, A)
    np.testing.assert_array_equal(next_row(draft, 3, len(B)), before)


def test_another_model_of_the_same_shape_reads_for_itself(
    tmp_path: Path, draft: LlamaTarget, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    target = opened(write_tiny(tmp_path, seed=5))
    lender = lender_of(target, draft)
    target.forward([Span(0, 0, A, 1)])
    assert lender.lend(0, A) == TRIAL, "the draft holds what it read itself to compare"
    assert not lender.able
    assert lender.held(0) == 0
    assert "the draft reads for itself" in caplog.text
    np.testing.assert_allclose(next_row(draft, 0, TRIAL, A[TRIAL:]), next_row(draft, 1, 0, A), atol=0.1)
    target.close()


def test_models_of_other_shapes_and_targets_in_llama_cpp_lend_nothing(
    tmp_path: Path, holder: TransformersTarget, draft: LlamaTarget
) -> None:
    write_gguf(write_tiny(tmp_path / "deeper", layers=3), tmp_path / "deeper.gguf", "q8_0")
    deeper = LlamaTarget.load(tmp_path / "deeper.gguf", slots=1, context=128, threads=1)
    assert between(holder, deeper) is None
    assert between(draft, draft) is None
    deeper.close()


def test_few_tokens_decide_nothing(holder: TransformersTarget, draft: LlamaTarget) -> None:
    lender = lender_of(holder, draft)
    holder.forward([Span(0, 0, A, 1)])
    assert lender.lend(0, A[: TRIAL - 1]) == 0
    assert lender.lend(0, [draft.vocab, *A[1:]]) == 0, "a token that the draft does not have"
    assert lender.able
    assert lender.lend(0, A) == len(A)
    assert lender.lend(0, A[: TRIAL - 1]) == TRIAL - 1


def test_a_draft_that_keeps_32_bits_reads_for_itself(
    folder: Path, holder: TransformersTarget, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wide = LlamaTarget.load(folder / "model.gguf", slots=4, context=128, threads=1)
    lender = lender_of(holder, wide)
    holder.forward([Span(0, 0, A, 1)])
    lender.lend(0, A)
    assert not lender.able
    assert "llama.cpp keeps them in another form" in caplog.text
    wide.close()


def test_more_than_fits_at_once_is_read(
    holder: TransformersTarget, draft: LlamaTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder.forward([Span(0, 0, A, 1), Span(1, 0, A[:20], 1)])
    lender = lender_of(holder, draft)
    monkeypatch.setattr(lending, "LARGEST", 30 * 2 * 2 * 2 * 32)  # of 30 positions, without their headers
    assert lender.lend(0, A) == TRIAL
    assert (lender.held(0), lender.held(1), lender.able) == (0, 20, True)
    assert lender.lend(1, A[:20]) == 20


class Paired:
    """A draft that turns its keys by neighbours, as llama.cpp does for Llama's family."""

    vocab, shape = 272, (2, 2, 64)

    def __init__(self, layers: Layers, transposed: bool) -> None:
        self.layout = Layout(b"\1\0\0\0" * 2 + b"\1\0\0\0", 0, b"", 2, transposed, 2, 8)
        self.layers = [
            (np.stack([keys[..., :4], keys[..., 4:]], -1).reshape(keys.shape), values)
            for keys, values in layers
        ]
        self.loaded: list[State] = []

    def forward(self, spans: Sequence[Span]) -> None:
        pass

    def save_slot(self, slot: int) -> State:
        return self.layout.write(
            [(keys[:, :TRIAL], values[:, :TRIAL]) for keys, values in self.layers], TRIAL
        )

    def load_slot(self, slot: int, state: State, length: int) -> None:
        self.loaded.append(state)


class Held:
    """A target that holds these keys and values in each slot."""

    shape = (2, 2, 64)

    def __init__(self, layers: Layers) -> None:
        self.layers = list(layers)
        self.lengths = [self.layers[0][0].shape[1]]

    def keys_and_values(self, slot: int, length: int) -> Layers:
        return [(keys[:, :length], values[:, :length]) for keys, values in self.layers]


@pytest.mark.parametrize("transposed", [False, True])
def test_keys_are_turned_as_the_draft_has_them(transposed: bool) -> None:
    random = np.random.default_rng(1)
    layers = [tuple(random.standard_normal((2, 2, 20, 8)).astype(np.float16)) for _ in range(2)]
    draft = Paired(layers, transposed)
    assert lender_of(Held(layers), draft).lend(0, A[:20]) == 20  # type: ignore[arg-type]
    np.testing.assert_array_equal(draft.loaded[0], draft.layout.write(draft.layers, 20))


def test_llamas_family_really_turns_them_so(smollm2: str) -> None:
    settings = load_settings()
    (model, *_) = load_catalog().pair(smollm2).models
    path = cached_path(model, settings.cache_dir)
    target = TransformersTarget.load(
        ensure_transformers(path, settings.cache_dir, settings.dtype), slots=1, context=128, threads=2
    )
    draft = LlamaTarget.load(path, slots=1, context=128, threads=2)
    text = list(range(300, 364))
    lender = lender_of(target, draft)
    rows = target.forward([Span(0, 0, text, 32)])[0].argmax(axis=1)
    read = draft.forward([Span(0, 0, text, 32)])[0].argmax(axis=1)
    target.truncate(0, 32)
    assert lender.lend(0, text[:32]) == 32
    lent = draft.forward([Span(0, 32, text[32:], 32)])[0].argmax(axis=1)
    assert np.mean(lent == rows) >= np.mean(read == rows) - 0.1 > 0.5
    target.close()
    draft.close()
