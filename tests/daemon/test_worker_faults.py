"""What fails in the engine process: whom it ends, one request or the engine, and what the front hears."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from draftd.daemon import worker
from draftd.daemon.governor import Rung
from draftd.daemon.loader import Loaded, Report
from draftd.daemon.settings import Settings
from draftd.ipc.errors import InvalidConfig, InvalidRequest
from draftd.models.processors import Penalties, Processors, Row
from tests.daemon.workers import GENERATE, PREFILL, VOCAB, Bench, Ending, bench, ending

__all__ = ["bench", "ending"]


def test_a_fault_of_ours_ends_one_request_and_not_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(body: dict[str, Any]) -> list[int]:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.worker.asked, "prompt", fault)
    (error,) = bench.run(GENERATE, {"type": "stop"})
    assert (error["key"], error["code"]) == (1, "internal")
    assert "ZeroDivisionError" in error["message"]


def test_a_fault_of_ours_ends_one_prefill_and_not_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(body: dict[str, Any]) -> list[int]:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(bench.worker.asked, "prompt", fault)
        (error,) = bench.run(PREFILL, {"type": "stop"})
    assert (error["type"], error["key"], error["code"]) == ("prefilled", 2, "internal")


def test_models_that_are_closed_to_us_are_said_and_not_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(settings: Settings, report: Report) -> Loaded:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed/x.gguf")

    monkeypatch.setattr(worker, "load", closed)
    with pytest.raises(InvalidConfig, match=r"cannot load tiny: .*Permission denied: '/closed/x.gguf'"):
        bench.worker.load(Settings.model_validate({"pair": "tiny", "check_memory": False}))


@pytest.mark.parametrize("body", [GENERATE, PREFILL], ids=["generate", "prefill"])
def test_a_fault_in_a_round_ends_the_request_that_it_was_for(ending: Ending, body: dict[str, Any]) -> None:
    prompt = [1, 2, 3] * 10
    whole = ending.ask(tokens=prompt, max_tokens=20)
    ending.target.fails_at = ending.target.passes + 1
    ending.target.failing = lambda: ending.say({"type": "stop"})
    other = (whole[0][0] + 1) % VOCAB  # not what stands there behind the prompt
    (error,) = ending.run({**body, "tokens": [*prompt, other], "key": 2})
    assert (error["key"], error["code"]) == (2, "internal")
    assert not ending.worker.engine.busy
    assert [ending.worker.jobs, ending.worker.choices, ending.worker.prefills] == [{}, {}, {}]
    tokens, text, done = ending.ask(tokens=prompt, max_tokens=20)
    assert (tokens, text) == whole[:2]
    assert done["usage"]["cached_tokens"] == 0, "what the failed round may have left is not trusted"


def test_a_fault_that_could_be_of_several_requests_ends_the_engine(bench: Bench) -> None:
    bench.target.fails_at = 1
    with pytest.raises(ZeroDivisionError):
        bench.run(GENERATE, {**GENERATE, "key": 2})


NO_MEMORY = {
    "python": MemoryError(),
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cuda": RuntimeError("CUDA error: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
}


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
@pytest.mark.parametrize("body", [GENERATE, PREFILL], ids=["generate", "prefill"])
def test_want_of_memory_in_a_round_ends_the_engine(
    bench: Bench, body: dict[str, Any], error: Exception
) -> None:
    def fail() -> None:
        bench.say({"type": "stop"})
        raise error

    bench.target.fails_at, bench.target.failing = 1, fail
    with pytest.raises(type(error)):
        bench.run(body)
    assert not bench.front.poll(0), "no request hears of it: the next engine goes on"


@pytest.mark.parametrize("error", NO_MEMORY.values(), ids=NO_MEMORY)
@pytest.mark.parametrize("body", [GENERATE, PREFILL], ids=["generate", "prefill"])
def test_want_of_memory_at_a_message_ends_the_engine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], error: Exception
) -> None:
    def fail(body: dict[str, Any]) -> list[int]:
        raise error

    monkeypatch.setattr(bench.worker.asked, "prompt", fail)
    with pytest.raises(type(error)):
        bench.run(body, {"type": "stop"})
    assert not bench.front.poll(0)


def test_a_second_fault_in_a_row_ends_the_engine(bench: Bench) -> None:
    bench.target.fails_at = 1

    def next_one() -> None:
        bench.target.fails_at = 2
        bench.say({**GENERATE, "key": 2})

    bench.target.failing = next_one
    with pytest.raises(ZeroDivisionError):
        bench.run(GENERATE)


class Stuck(Processors):
    def apply(self, row: Row, drafted: Sequence[int] = ()) -> None:
        raise InvalidRequest("grammar: the answer can't go on")


def test_a_grammar_that_errs_ends_its_request_with_all_its_answers_and_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def processors(body: dict[str, Any], prompt: list[int]) -> Processors | None:
        return Stuck(Penalties(), prompt) if body["key"] == 1 else None

    monkeypatch.setattr(bench.worker.asked, "processors", processors)
    bench.target.at = 5
    bench.target.interrupt = lambda: bench.say({"type": "stop"})  # type: ignore[method-assign]
    two = {"emitted": [[], []], "characters": [0, 0], "endings": [None, None]}
    said = bench.run({**GENERATE, **two}, {**GENERATE, "key": 2, "max_tokens": 5})
    (error,) = [body for body in said if body["key"] == 1]
    assert (error["type"], error["code"]) == ("error", "invalid_request")
    assert error["message"] == "grammar: the answer can't go on"
    assert said[-1]["type"] == "done"
    assert said[-1]["usage"]["completion_tokens"] == 5
    assert [bench.worker.jobs, bench.worker.choices] == [{}, {}]
    assert len(bench.worker.engine.scheduler.places.free) == 4


def test_the_slot_of_a_request_that_met_an_error_is_given_back_where_memory_is_short(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.worker.asked, "processors", lambda body, prompt: Stuck(Penalties(), prompt))
    bench.worker.retreat.to(Rung.DROP_CACHES)
    bench.target.at = 1
    bench.target.interrupt = lambda: bench.say({"type": "stop"})  # type: ignore[method-assign]
    (error,) = bench.run(GENERATE)
    assert error["code"] == "invalid_request"
    assert not any(bench.target.held)


def test_logits_that_are_no_numbers_end_a_request_and_what_it_started_from_is_forgotten(
    ending: Ending, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = [1, 2, 3] * 10
    whole = ending.ask(tokens=prompt, max_tokens=20)
    ending.target.at = ending.target.passes + 1
    ending.target.interrupt = lambda: ending.say({"type": "stop"})  # type: ignore[method-assign]
    with monkeypatch.context() as patched:
        patched.setattr(ending.target, "row", lambda tokens: np.full(VOCAB, np.nan, np.float32))
        (error,) = ending.run({**GENERATE, "tokens": [*prompt, 4], "key": 2})
    assert (error["key"], error["code"]) == (2, "engine_failed")
    assert "are not numbers" in error["message"]
    assert "request 2: the model's logits" in caplog.text
    tokens, text, done = ending.ask(tokens=prompt, max_tokens=20)
    assert (tokens, text) == whole[:2]
    assert done["usage"]["cached_tokens"] == 0
