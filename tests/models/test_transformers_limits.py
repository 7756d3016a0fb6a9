"""The transformers target at its limits: context, padding, impossible spans, chunks of unlike widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftd.ipc.errors import ContextOverflow, InvalidRequest
from draftd.models.base import Span
from draftd.models.transformers import TransformersTarget, group_by_width
from tests.models.targets import TARGET, close, tokens
from tests.tiny import write_tiny


@pytest.mark.parametrize("slots", [1, 2])
def test_bfloat16_in_a_small_context(qwen: Path, slots: int) -> None:
    target = TransformersTarget.load(qwen, slots=slots, context=10, dtype="bfloat16", device="cpu")
    assert list(target.lengths) == [0] * slots
    (rows,) = target.forward([Span(0, 0, tokens(10), 3)])
    assert rows.dtype == np.float32
    assert rows.shape == (3, 272)


def test_the_context_is_the_smaller_of_what_is_asked_and_known(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, context=48)
    target = TransformersTarget.load(path, slots=1, context=4096, dtype="float32", device="cpu")
    assert target.context == 48
    target.forward([Span(0, 0, tokens(48), 1)])
    with pytest.raises(ContextOverflow, match="needs 49 positions, the context has 48"):
        target.forward([Span(0, 48, [1], 1)])
    assert target.lengths == [48]


def test_padding_keeps_within_learnt_positions(tmp_path: Path) -> None:
    path = write_tiny(tmp_path, "gpt2", context=32)
    target = TransformersTarget.load(path, **(TARGET | {"context": 32}))  # type: ignore[arg-type]
    target.forward([Span(0, 0, tokens(31), 0)])
    (expected,) = target.forward([Span(0, 31, [5], 1)])
    found, _ = target.forward([Span(0, 31, [5], 1), Span(1, 0, tokens(9), 1)])
    close(found, expected)


@pytest.mark.parametrize(
    ("spans", "error", "words"),
    [
        ([Span(4, 0, [1], 1)], ValueError, "slot 4"),
        ([Span(0, 0, [1], 1), Span(0, 0, [2], 1)], ValueError, "given twice"),
        ([Span(0, 1, [1], 1)], ValueError, "can't go on at 1"),
        ([Span(0, 0, [], 0)], ValueError, "0 tokens"),
        ([Span(0, 0, [1], 2)], ValueError, "not 2 rows"),
        ([Span(0, 0, [272], 1)], InvalidRequest, "vocabulary of 272"),
        ([Span(0, 0, [-1], 1)], InvalidRequest, "vocabulary of 272"),
        ([Span(0, 0, [1] * 129, 1)], ContextOverflow, "needs 129 positions"),
    ],
)
def test_impossible_spans_are_refused_and_change_nothing(
    qwen: Path, spans: list[Span], error: type[Exception], words: str
) -> None:
    target = TransformersTarget.load(qwen, **TARGET)  # type: ignore[arg-type]
    with pytest.raises(error, match=words):
        target.forward(spans)
    assert target.lengths == [0, 0, 0, 0]
    assert target.forward([]) == []


def test_a_long_chunk_runs_apart_from_narrow_steps() -> None:
    def widths(*given: int) -> list[list[int]]:
        spans = [Span(slot, 0, [0] * width, 1) for slot, width in enumerate(given)]
        return [[len(span.tokens) for span in group] for group in group_by_width(spans)]

    assert widths() == []
    assert widths(9, 1, 5) == [[9, 1, 5]]
    assert widths(9, 512, 1, 9) == [[512], [9, 1, 9]]
    assert widths(400, 9, 512, 400) == [[512], [400, 400], [9]]
