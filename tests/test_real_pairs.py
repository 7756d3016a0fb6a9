"""The catalog's pairs end to end: real weights, the real daemon, an app's own client.

How far drafted and plain answers are equal, and how near the choice was where they part: the logits of a pass
depend in their last digits on its width, so a near tie may fall either way, and nothing else may. A target in
transformers on a CPU whose kernels allow it gives the same bits at any width: there answers are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from draftd.daemon.private import private_daemon
from draftd.ipc import Client, Reply
from draftd.models.noise import noise_of
from tests.models.targets import SAME_BITS

QUESTIONS = (
    "Write a Python function that returns the n-th Fibonacci number.",
    "Why is the sky blue? Answer in two sentences.",
    "List the months of the year.",
)
SEED = 3
# Four spacings of bfloat16 between 16 and 32, where the largest logits of these models lie: each of the two
# passes rounds them, and what went before, to the nearest of these.
BF16 = 0.5  # nats
TORCH = -np.inf if SAME_BITS else BF16
INT8 = 1.5  # nats: llama.cpp rounds the activations to 8 bits (docs/architecture.md)

BACKENDS = [("transformers", TORCH), ("llama_cpp", INT8)]


def ask(client: Client, question: str, **options: Any) -> Reply:
    turn = {"role": "user", "content": question}
    return client.complete(messages=[turn], max_tokens=40, cache_prompt=False, logprobs=20, **options)


def first_divergence(plain: Reply, other: Reply, temperature: float) -> tuple[int, float, float] | None:
    """Where two answers part; the nats by which the plain one's choice won there over the other's, and by
    which the likeliest token of that row leads the second. None if they are equal.
    """
    for index, (mine, theirs) in enumerate(zip(plain.logprobs, other.logprobs, strict=False)):
        if mine.token != theirs.token:
            known = {each.token: each.logprob for each in mine.top} | {mine.token: mine.logprob}
            tokens = np.array([mine.token, theirs.token])
            scores = np.array([known.get(int(token), -np.inf) for token in tokens])
            if temperature > 0:  # the choice is the largest of log p / T + noise (models/sampling.py)
                scores += temperature * noise_of(SEED, plain.usage.prompt_tokens + index, 2**20).at(tokens)
            return index, float(scores[0] - scores[1]), mine.top[0].logprob - mine.top[1].logprob
    return None


def check(client: Client, wanted: str, bound: float) -> None:
    accepted = drafted = 0
    for question in QUESTIONS:
        for temperature in (0.0, 0.8):
            options: dict[str, Any] = {"temperature": temperature, "seed": SEED}
            plain = ask(client, question, speculate="off", **options)
            helped = ask(client, question, speculate="model:4", **options)
            assert helped.stats.rounds < plain.stats.rounds
            accepted += helped.stats.accepted
            drafted += helped.stats.drafted
            parted = first_divergence(plain, helped, temperature)
            report = "equal"
            if parted is not None:
                place, margin, lead = parted
                report = f"part at token {place}, where the choice won by {margin:.3f} nats"
                report += f" and the likeliest token led the second by {lead:.3f}"
            elif len(plain.tokens) != len(helped.tokens):
                shorter = min(plain, helped, key=lambda reply: len(reply.tokens))
                report = f"one ends behind token {len(shorter.tokens)}"  # by a token that is not told
                assert shorter.finish_reason == "stop"
            print(f"{question[:30]!r} at temperature {temperature}: {len(plain.tokens)} tokens, {report}")
            assert parted is None or parted[1] <= bound
            assert bound >= 0 or helped.logprobs == plain.logprobs
            if question == QUESTIONS[0] and temperature == 0:
                assert wanted in helped.text
    assert accepted > 0.3 * drafted > 0


@pytest.mark.smollm2
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("backend", "bound"), BACKENDS)
def test_smollm2(smollm2: str, backend: str, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_BACKEND", backend)
    with private_daemon(smollm2, lambda status: None) as endpoint, Client(endpoint) as client:
        engine = client.status().engine
        assert engine["draft"]
        assert engine["backend"] == backend
        check(client, "def ", bound)


@pytest.mark.qwen
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("backend", "bound"), BACKENDS)
def test_qwen(backend: str, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_BACKEND", backend)
    with private_daemon("qwen2.5-coder", lambda status: None) as endpoint, Client(endpoint) as client:
        assert client.status().engine["backend"] == backend
        check(client, "def fibonacci", bound)
