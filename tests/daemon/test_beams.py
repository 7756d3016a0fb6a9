"""Beam search: the tokens of transformers' own, in any company, over the engine and over the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from draftd.daemon.beams import Beams
from draftd.daemon.engine import Emission, Engine
from draftd.daemon.request import Priority, Request
from draftd.ipc.errors import InvalidRequest
from draftd.models.base import Target
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling
from draftd.models.transformers import TransformersTarget
from tests.daemon.conftest import Daemon
from tests.fakes import TableTarget
from tests.tiny import END_OF_TEXT, IM_END, write_tiny

PROMPTS = [b"The quick brown fox", b"a", b"def add(a, b):", b"0123456789" * 4]


def search(
    key: int, prompt: list[int], width: int, limit: int, stop_ids: frozenset[int], **options: Any
) -> Request:
    return Request(
        key=key,
        tokens=list(prompt),
        prompt=len(prompt),
        end=len(prompt) + limit,
        sampling=Sampling(),
        stop_ids=stop_ids,
        mode="off",
        beams=Beams(width, limit, stop_ids),
        **options,
    )


def plain(key: int, prompt: list[int], limit: int, **options: Any) -> Request:
    return Request(
        key=key,
        tokens=list(prompt),
        prompt=len(prompt),
        end=len(prompt) + limit,
        sampling=Sampling(1.0, seed=key),
        stop_ids=frozenset(),
        **options,
    )


def run(target: Target, requests: list[Request]) -> dict[int, Emission]:
    """Each request's last emission."""
    engine = Engine(target)
    for each in requests:
        engine.add(each)
    last: dict[int, Emission] = {}
    while engine.busy:
        last |= {emission.request.key: emission for emission in engine.step()}
    assert len(engine.scheduler.places.free) == target.slots, "all slots are given back"
    return last


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_the_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    write_tiny(tmp_path, family, scale=0.1)  # flat distributions: many beginnings are close
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    target = TransformersTarget.load(tmp_path, slots=5, context=128, dtype="float32", device="cpu", threads=1)
    ended = stopped = 0
    for text in PROMPTS:
        prompt = list(text)
        for width, limit in ((2, 20), (3, 1), (4, 12), (5, 30)):
            likely = run(target, [plain(0, prompt, 40)])[0].request.tokens[len(prompt) :]
            for stop_ids in (frozenset({IM_END, END_OF_TEXT}), frozenset(likely[::3])):
                with torch.inference_mode():
                    expected = model.generate(  # type: ignore[misc]
                        torch.tensor([prompt]),
                        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                        num_beams=width,
                        do_sample=False,
                        max_new_tokens=limit,
                        eos_token_id=sorted(stop_ids),
                        pad_token_id=END_OF_TEXT,
                    )[0, len(prompt) :].tolist()
                last = run(target, [search(0, prompt, width, limit, stop_ids)])[0]
                ended += 1
                if expected[-1] in stop_ids:
                    stopped += 1
                    assert last.finish == "stop"
                    expected.pop()
                assert last.tokens == expected
    target.close()
    assert 0 < stopped < ended


def test_company_and_being_preempted_change_nothing() -> None:
    stops = frozenset({3})
    alone = run(TableTarget(slots=3), [search(0, [1, 2, 4], 3, 20, stops)])[0]
    mates = [plain(key, [key, 5], 12) for key in range(1, 5)]
    target = TableTarget(slots=4)
    last = run(target, [mates[0], search(0, [1, 2, 4], 3, 20, stops), *mates[1:]])
    assert last[0].tokens == alone.tokens
    assert last[0].finish == alone.finish
    assert target.widest == 4, "in one pass with another"
    for mate in mates:
        again = plain(mate.key, mate.tokens[: mate.prompt], 12)
        run(TableTarget(), [again])
        assert again.tokens == mate.tokens
    engine = Engine(TableTarget(slots=3))
    background = search(0, [1, 2, 4], 3, 20, stops, priority=Priority.BACKGROUND)
    engine.add(background)
    for _ in range(4):
        engine.step()
    urgent = plain(1, [6, 7], 5)
    engine.add(urgent)
    tokens: list[int] = []
    while engine.busy:
        for emission in engine.step():
            if emission.request is background:
                assert len(urgent.tokens) == urgent.end, "it had to wait"
                tokens = emission.tokens
    assert tokens == alone.tokens


def test_penalties_are_in_the_search_and_log_probabilities_are_raw() -> None:
    biased = Processors(Penalties(bias=((6, -100.0),), frequency=3.0), [1, 2])
    one = search(0, [1, 2], 3, 12, frozenset(), processors=biased, logprobs=2)
    emission = run(TableTarget(), [one])[0]
    assert 6 not in emission.tokens
    assert len(set(emission.tokens)) >= 5, "a frequency penalty spreads them"
    assert [told.token for told in emission.logprobs] == emission.tokens
    table = TableTarget()
    for at, told in enumerate(emission.logprobs):
        row = torch.tensor(table.row([1, 2, *emission.tokens[:at]])).log_softmax(0)
        assert abs(told.logprob - float(row[told.token])) < 1e-5
        assert [token for token, _ in told.top] == row.topk(2).indices.tolist()


def test_the_daemon_searches_and_says_what_does_not_go_together(shared: Daemon, tiny_files: Path) -> None:
    client = shared.client()
    model = AutoModelForCausalLM.from_pretrained(tiny_files / "target", dtype=torch.float32)
    prompt = list(b"def add(a, b):")
    with torch.inference_mode():
        expected = model.generate(torch.tensor([prompt]), num_beams=2, do_sample=False, max_new_tokens=24)  # type: ignore[misc]
    tokens = expected[0, len(prompt) :].tolist()
    found = client.complete(tokens=prompt, beams=2, max_tokens=24, logprobs=1)
    if tokens[-1] in (IM_END, END_OF_TEXT):
        tokens.pop()
    assert found.tokens == tokens == [told.token for told in found.logprobs]
    assert found.usage.completion_tokens == len(tokens)
    assert found.stats.rounds > 1
    assert found.stats.drafted == 0
    for wrong in ({"temperature": 0.5}, {"n": 2}, {"grammar": {"kind": "regex", "source": "a*"}}):
        with pytest.raises(InvalidRequest, match=f"beams does not go with {next(iter(wrong))}"):
            client.complete(prompt="x", beams=2, **wrong)
    with pytest.raises(InvalidRequest, match="this daemon has 2"):
        client.complete(prompt="x", beams=3)
