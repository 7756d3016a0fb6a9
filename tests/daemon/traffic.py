"""Requests of random tokens, and an engine that runs them to their ends."""

from __future__ import annotations

import random

from draftd.daemon.engine import Engine
from draftd.daemon.request import Priority, Request
from draftd.models.sampling import Sampling
from tests.fakes import TableTarget

BACKGROUND, PREFILL = Priority.BACKGROUND, Priority.PREFILL


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(8), k=length)


def request(key: int, prompt: list[int], count: int = 6, **options: object) -> Request:
    sampling = Sampling(1.0, seed=key)
    return Request(key, list(prompt), len(prompt), len(prompt) + count, sampling, frozenset(), **options)  # type: ignore[arg-type]


def prefill(key: int, prompt: list[int]) -> Request:
    return request(key, prompt, 0, priority=PREFILL, cache_only=True)


def run(engine: Engine, *requests: Request) -> None:
    for each in requests:
        engine.add(each)
    while engine.busy:
        engine.step()


def alone(key: int, prompt: list[int], count: int = 6) -> list[int]:
    one = request(key, prompt, count)
    run(Engine(TableTarget(context=2000)), one)
    return one.tokens
