"""The transformers target on tiny fp32 models of every family, against the library's own full forward."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftd.models.base import Rows, Span
from draftd.models.transformers import TransformersTarget
from tests.models.targets import TARGET, close, tokens
from tests.tiny import FAMILIES, fill, write_tiny

CASES = [*FAMILIES, "qwen2 tied", "gemma2"]  # gemma2 runs on eager attention, which adds its mask


@pytest.fixture(scope="module", params=CASES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def full(path: Path) -> Callable[[list[int]], Rows]:
    """Logits of every row of a sequence, by the library alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def logits(tokens: list[int]) -> Rows:
        with torch.inference_mode():
            rows: Rows = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
        return rows

    return logits


@pytest.fixture
def target(path: Path) -> Iterator[TransformersTarget]:
    target = TransformersTarget.load(path, **TARGET)  # type: ignore[arg-type]
    yield target
    target.close()


def write_case(case: str, path: Path) -> Path:
    if case == "gemma2":
        save(path, "gemma2", sliding_window=16, query_pre_attn_scalar=32)
        return path
    return write_tiny(path, case.split()[0], tied=case.endswith("tied"))


def save(path: Path, family: str, **options: Any) -> None:
    """A tiny model of any family of the library."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "vocab_size": 272,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(family, **(sizes | options))
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    fill(model, seed=0)
    model.save_pretrained(path)


def test_token_by_token_equals_the_full_forward(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    prompt = tokens(30)
    rows = [target.forward([Span(0, at, [token], 1)])[0] for at, token in enumerate(prompt)]
    assert target.lengths[0] == 30
    assert rows[0].dtype == np.float32
    assert rows[0].shape == (1, target.vocab)
    close(np.concatenate(rows), full(prompt))


def test_chunks_equal_one_prefill(target: TransformersTarget, full: Callable[[list[int]], Rows]) -> None:
    prompt = tokens(100, seed=1)
    for start in range(0, 100, 17):
        chunk = prompt[start : start + 17]
        (rows,) = target.forward([Span(2, start, chunk, len(chunk))])
        close(rows, full(prompt)[start : start + 17])


def test_ragged_requests_in_one_forward_equal_each_alone(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    prompts = [tokens(count, seed=count) for count in (40, 3, 1, 21)]
    held = [33, 0, 0, 20]
    for slot, (prompt, start) in enumerate(zip(prompts, held, strict=True)):
        if start:
            target.forward([Span(slot, 0, prompt[:start], 0)])
    wanted = [5, 3, 1, 1]
    order = [2, 0, 3, 1]
    new = [prompt[start:] for prompt, start in zip(prompts, held, strict=True)]
    found = target.forward([Span(slot, held[slot], new[slot], wanted[slot]) for slot in order])
    for slot, rows in zip(order, found, strict=True):
        close(rows, full(prompts[slot])[-wanted[slot] :])


@pytest.mark.parametrize("slots", [[0, 3], [0, 1], [3, 1, 2]])
def test_slots_apart_or_adjacent_in_any_order(
    target: TransformersTarget, full: Callable[[list[int]], Rows], slots: list[int]
) -> None:
    spans = [Span(slot, 0, tokens(10 + slot, seed=slot), 2) for slot in slots]
    for span, rows in zip(spans, target.forward(spans), strict=True):
        close(rows, full(list(span.tokens))[-2:])


def test_rolled_back_then_continued_equals_a_fresh_prefill(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    """Far beyond the sliding window, whose old keys a cache that overwrites them would have lost."""
    prompt, wrong = tokens(60, seed=2), tokens(40, seed=3)
    target.forward([Span(1, 0, prompt[:50], 1)])
    target.forward([Span(1, 50, wrong, 1)])
    target.truncate(1, 45)
    assert target.lengths[1] == 45
    (rows,) = target.forward([Span(1, 45, prompt[45:], 15)])
    close(rows, full(prompt)[45:])
    (rows,) = target.forward([Span(1, 10, prompt[10:20], 10)])  # a start below the length rolls back, too
    assert target.lengths[1] == 20
    close(rows, full(prompt)[10:20])


def test_a_copied_prefix_equals_a_fresh_prefill(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    prompt, other = tokens(40, seed=4), tokens(40, seed=5)
    target.forward([Span(0, 0, prompt, 0), Span(3, 0, other, 0)])
    target.copy_prefix(0, 3, 30)
    assert target.lengths[3] == 30
    branch = prompt[:30] + other[:9]
    (rows,) = target.forward([Span(3, 30, branch[30:], 9)])
    close(rows, full(branch)[30:])
    (rows,) = target.forward([Span(0, 40, other[:2], 1)])  # the source goes on untouched
    close(rows, full(prompt + other[:2])[-1:])


def test_a_saved_slot_gives_the_same_rows_in_another(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    prompt = tokens(40, seed=4)
    target.forward([Span(0, 0, prompt, 0)])
    state = target.save_slot(0)
    (expected,) = target.forward([Span(0, 30, prompt[30:], 10)])
    target.truncate(0, 0)
    target.load_slot(2, state, 30)
    assert list(target.lengths) == [0, 0, 30, 0]
    (rows,) = target.forward([Span(2, 30, prompt[30:], 10)])
    assert np.array_equal(rows, expected)
    close(rows, full(prompt)[30:])


def test_a_fault_of_the_model_in_one_request_reaches_no_later_one(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    """Here a token of NaN: it stood in the slot where the next request attends beside a longer one."""
    bad, prompts = 260, [tokens(5, seed=1), tokens(30, seed=2)]
    weight = target._model.get_input_embeddings().weight
    with torch.inference_mode():
        kept = weight[bad].clone()
        weight[bad] = torch.nan
        target.forward([Span(0, 0, [*tokens(3), bad, *tokens(20)], 0)])
        weight[bad] = kept
    target.truncate(0, 0)
    spans = [Span(slot, 0, prompt, 5) for slot, prompt in enumerate(prompts)]
    for prompt, rows in zip(prompts, target.forward(spans), strict=True):
        close(rows, full(prompt)[-5:])


def test_random_traffic_equals_the_full_forward(
    target: TransformersTarget, full: Callable[[list[int]], Rows]
) -> None:
    """Prefills, ragged steps, rollbacks and copies mixed by chance, every row checked."""
    chance = random.Random(7)
    held: list[list[int]] = [[] for _ in range(4)]
    for _ in range(25):
        spans = []
        for slot in chance.sample(range(4), chance.randint(1, 4)):
            if chance.random() < 0.2:
                source = chance.randrange(4)
                cut = chance.randint(0, len(held[source]))
                target.copy_prefix(source, slot, cut)
                held[slot] = held[source][:cut]
        for slot in chance.sample(range(4), chance.randint(1, 4)):
            start = chance.randint(max(0, len(held[slot]) - 12), len(held[slot]))
            new = tokens(chance.choice([1, 1, 5, 9, 70]), seed=chance.randrange(1000))[: 128 - start]
            if new:
                held[slot] = held[slot][:start] + new
                spans.append(Span(slot, start, new, chance.randint(0, len(new))))
        for span, rows in zip(spans, target.forward(spans), strict=True):
            assert rows.shape == (span.rows, target.vocab)
            if span.rows:
                close(rows, full(held[span.slot])[-span.rows :])
        assert list(target.lengths) == [len(one) for one in held]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_cuda_equals_the_cpu(case: str, tmp_path: Path) -> None:
    path = write_case(case, tmp_path)
    on_cpu = TransformersTarget.load(path, **TARGET)  # type: ignore[arg-type]
    on_gpu = TransformersTarget.load(path, **(TARGET | {"device": "cuda"}))  # type: ignore[arg-type]
    assert on_gpu.device.type == "cuda"
    for spans in (
        [Span(0, 0, tokens(90), 1), Span(1, 0, tokens(5, seed=1), 5), Span(3, 0, tokens(7, seed=2), 2)],
        [Span(0, 80, tokens(9, seed=3), 9), Span(3, 7, tokens(1, seed=4), 1)],
    ):
        for found, expected in zip(on_gpu.forward(spans), on_cpu.forward(spans), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)
    on_gpu.close()
