"""The engine process: load the pair, then turn the front's messages into rounds and rounds into messages.

One thread does it all. ZeroMQ's own I/O thread queues what arrives during a pass, so a cancel takes effect
before the next round, and llama.cpp has a thread to itself (models/llama_cpp.py).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack
import zmq

from draftd.daemon import budget, forget, learnt, logs, machine
from draftd.daemon.control import Mode
from draftd.daemon.engine import Emission, Engine
from draftd.daemon.governor import Rung
from draftd.daemon.keeping import Keeping
from draftd.daemon.loader import Loaded, load
from draftd.daemon.plan import Source
from draftd.daemon.pulse import IDLE, LOADING, Pulse
from draftd.daemon.request import Priority, Request
from draftd.daemon.retreat import Retreat
from draftd.daemon.scheduler import Work
from draftd.daemon.settings import Settings
from draftd.daemon.text import Answer
from draftd.ipc.errors import ContextOverflow, DraftdError, InvalidRequest
from draftd.models.catalog import load_catalog
from draftd.models.grammar import Grammars
from draftd.models.logprobs import Logprob
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling

log = logging.getLogger("draftd.engine")
PR_SET_PDEATHSIG = 1
SAVE_EVERY = 30.0  # seconds


@dataclass(slots=True)
class Pending:
    """A token that the front has yet to be told."""

    token: int
    drafted: bool
    length: int  # characters of text that it released
    logprob: dict[str, Any] | None


@dataclass(slots=True)
class Job:
    """One request with the text it becomes."""

    request: Request
    answer: Answer
    received: float  # monotonic seconds, when the front got it
    first_token: float | None = None  # monotonic seconds
    pending: list[Pending] = field(default_factory=list)


class Worker:
    """Requests in flight by the front's key, and the engine that runs them."""

    def __init__(self, socket: zmq.Socket[bytes], pulse: Pulse) -> None:
        self.socket = socket
        self.pulse = pulse
        self.settings: Settings
        self.loaded: Loaded
        self.engine: Engine
        self.keeping: Keeping
        self.retreat: Retreat
        self.jobs: dict[int, Job] = {}
        self.prefills: dict[int, Request] = {}  # by keys of their own
        self.grammars: Grammars | None = None  # made with the first request that has a grammar
        self.saved = time.monotonic()

    def say(self, body: dict[str, Any]) -> None:
        self.socket.send(msgpack.packb(body))

    def load(self, settings: Settings) -> None:
        def report(fraction: float, stage: str) -> None:
            self.pulse.beat(LOADING)
            self.say({"type": "progress", "fraction": fraction, "stage": stage})

        if settings.check_memory:
            settings = budget.check(load_catalog().pair(settings.pair), settings, budget.measure_room())
        self.settings = settings
        self.loaded = load(settings, report)
        self.engine = Engine(self.loaded.target, self.loaded.drafting, beat=self.beat)
        self.keeping = Keeping(settings, self.loaded.info, self.engine)
        self.retreat = Retreat(self.loaded, self.engine)
        self.say({"type": "ready", "info": self.loaded.info})

    def save(self, every: float = SAVE_EVERY) -> None:
        """Keep what the controller learnt, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self.saved >= every:
            self.saved = now
            learnt.save(self.loaded.learnt_path, self.loaded.drafting.controller.learnt)

    def beat(self, stage: int, rows: int, batch: Sequence[Work]) -> None:
        """A step of the engine begins; its draft may take what the target would."""
        keys = [work.request.key for work in batch]
        self.pulse.step(stage, rows, keys, self.loaded.drafting.controller.target)

    def run(self) -> None:
        """Rounds while there is work, a blocking wait while there is none, until told to stop."""
        while True:
            while not self.engine.busy or self.socket.poll(0):
                if not self.engine.busy:
                    self.pulse.beat(IDLE)
                frame = self.socket.recv()
                body = msgpack.unpackb(frame)
                self.pulse.read(len(frame), [body["key"]] if "key" in body else [])
                if not self.handle(body):
                    return
            for emission in self.engine.step():
                self.emit(emission)

    def handle(self, body: dict[str, Any]) -> bool:
        """One message of the front; False for the last."""
        match body["type"]:
            case "generate":
                try:
                    self.accept(body)
                except DraftdError as error:
                    self.say(
                        {"type": "error", "key": body["key"], "code": error.code, "message": error.message}
                    )
            case "prefill":
                try:
                    self.prefill(body)
                except DraftdError as error:
                    refused = {"code": error.code, "message": error.message}
                    self.say({"type": "prefilled", "key": body["key"], **refused})
            case "cancel_prefill" if body["key"] in self.prefills:
                self.engine.remove(self.prefills.pop(body["key"]))
            case "cancel" if body["key"] in self.jobs:
                self.finish(self.jobs[body["key"]], body["reason"])
            case "clear":
                self.clear(body)
            case "govern":
                self.retreat.to(Rung(body["rung"]))
            case "threads":
                self.retreat.set_threads(body["count"])
            case "stop":
                return False
        return True

    def accept(self, body: dict[str, Any]) -> None:
        tokenizer, target = self.loaded.tokenizer, self.loaded.target
        prompt = self.prompt(body)
        emitted = body["emitted"]
        if wrong := [token for token in emitted if token >= target.vocab]:
            raise InvalidRequest(f"token {wrong[0]} of resume is outside the vocabulary of {target.vocab}")
        answer = Answer(tokenizer.stream(), body["stop"])
        answer.resume(emitted, body["characters"])  # sent again: it goes on where the last engine left it
        request = Request(
            key=body["key"],
            tokens=prompt + emitted,
            prompt=len(prompt),
            end=min(len(prompt) + body["max_tokens"], target.context),
            sampling=Sampling(
                body["temperature"], body["top_k"], body["top_p"], body["min_p"], seed=body["seed"]
            ),
            stop_ids=frozenset(body["stop_tokens"]).union(() if body["ignore_eos"] else tokenizer.stop_ids),
            processors=self.processors(body, prompt),
            mode=mode(body["speculate"]),
            verify=body["verify"],
            logprobs=body["logprobs"],
            scope=body["scope"],
            reuse=body["cache_prompt"],
            priority=Priority[body["priority"].upper()],
            client=body["client"],
            cache_owner=body["cache_owner"],
        )
        if request.processors is not None:
            request.processors.accept(emitted)
        self.keeping.load(request, body["app"], body["conversation"])
        job = self.jobs[request.key] = Job(request, answer, body["received"])
        # Only the end of an answer may have been lost with the last engine or front.
        if answer.stopped or (request.processors is not None and request.processors.ended):
            self.finish(job, "stop")
        elif len(request.tokens) >= request.end:
            self.finish(job, "length")
        else:
            self.engine.add(request)

    def prompt(self, body: dict[str, Any]) -> list[int]:
        """The tokens of a request's prompt; DraftdError if they can't be used."""
        tokenizer, target = self.loaded.tokenizer, self.loaded.target
        if body["messages"] is not None:
            prompt = tokenizer.chat(body["messages"])
        elif body["prompt"] is not None:
            prompt = tokenizer.encode(body["prompt"])
        else:
            prompt = list(body["tokens"])
            if wrong := [token for token in prompt if token >= target.vocab]:
                raise InvalidRequest(f"token {wrong[0]} is outside the vocabulary of {target.vocab}")
        if len(prompt) >= target.context:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens, the context holds {target.context}, answer included: "
                "shorten the prompt or serve with a larger --context"
            )
        return prompt

    def prefill(self, body: dict[str, Any]) -> None:
        """Compute a prompt that is still being typed, its template's closing marks included.

        They are right if nothing more is typed; if more is, they are a handful of tokens computed in vain.
        """
        prompt = self.prompt(body)
        request = Request(
            key=body["key"],
            tokens=prompt,
            prompt=len(prompt),
            end=len(prompt),
            sampling=Sampling(),
            stop_ids=frozenset(),
            priority=Priority.PREFILL,
            client=body["client"],
            cache_owner=body["cache_owner"],
            cache_only=True,
        )
        self.keeping.load(request, body["app"], body["conversation"])
        self.prefills[request.key] = request
        self.engine.add(request)

    def prefilled(self, request: Request) -> None:
        """A prefill is complete, or a request took its place."""
        del self.prefills[request.key]
        told = {
            "state": "complete" if request.cached == request.prompt else "superseded",
            "prompt_tokens": request.prompt,
            "cached_tokens": request.reused,
            "computed_tokens": request.cached - request.reused,
        }
        self.say({"type": "prefilled", "key": request.key, "told": told})

    def clear(self, body: dict[str, Any]) -> None:
        """Forget what earlier requests left, in memory and on disk."""
        if body["learnt"]:
            self.loaded.drafting.unlearn()
            self.say({"type": "learnt", "report": {}})
        self.engine.forget()
        self.keeping.conversations.settle()
        if self.loaded.drafting.suffix is not None:
            self.loaded.drafting.suffix.clear()
        try:
            files = forget.clear(self.settings.state_dir, body["learnt"])
        except DraftdError as error:
            self.say({"type": "cleared", "key": body["key"], "message": error.message})
        else:
            self.say({"type": "cleared", "key": body["key"], "files": files})

    def processors(self, body: dict[str, Any], prompt: list[int]) -> Processors | None:
        """The row processors a request asks for, None if it asks for none."""
        penalties = Penalties(
            body["repetition_penalty"],
            body["presence_penalty"],
            body["frequency_penalty"],
            tuple((int(token), bias) for token, bias in body["logit_bias"].items()),
        )
        matcher = None
        if body["grammar"] is not None:
            if self.grammars is None:
                tokenizer = self.loaded.tokenizer
                vocabulary = tokenizer.grammar_vocabulary(self.loaded.target.vocab)
                self.grammars = Grammars(vocabulary, tokenizer.stop_ids)
            matcher = self.grammars.matcher(body["grammar"]["kind"], body["grammar"]["source"])
        if penalties == Penalties() and matcher is None:
            return None
        return Processors(penalties, prompt, matcher)

    def emit(self, emission: Emission) -> None:
        """A round's tokens as text; a stop string ends the request here, before the next round."""
        request = emission.request
        if request.cache_only:
            self.prefilled(request)
            return
        job = self.jobs[request.key]
        job.first_token = job.first_token or time.monotonic()
        text = ""
        for count, (token, drafted) in enumerate(zip(emission.tokens, emission.drafted, strict=True), 1):
            released = job.answer.push(token)
            text += released
            told = self.told(emission.logprobs[count - 1]) if emission.logprobs else None
            job.pending.append(Pending(token, drafted, len(released), told))
            if job.answer.stopped:
                surplus = len(emission.tokens) - count
                del request.tokens[len(request.tokens) - surplus :]
                break
        if text:
            self.send_tokens(job, text)
        if job.answer.stopped:
            self.finish(job, "stop")
        elif emission.finish is not None:
            self.finish(job, emission.finish)

    def told(self, logprob: Logprob) -> dict[str, Any]:
        """A token's log-probability as the protocol has it."""
        top = [self.named(token, value) for token, value in logprob.top]
        return {**self.named(logprob.token, logprob.logprob), "top": top}

    def named(self, token: int, logprob: float) -> dict[str, Any]:
        """A token by id, text and bytes."""
        added = self.loaded.tokenizer.bytes_of(token)
        text = added.decode("utf-8", "replace") or self.loaded.tokenizer.piece(token)
        return {"token": token, "text": text, "bytes": list(added), "logprob": logprob}

    def send_tokens(self, job: Job, text: str) -> None:
        self.say(
            {
                "type": "tokens",
                "key": job.request.key,
                "text": text,
                "tokens": [each.token for each in job.pending],
                "drafted": [each.drafted for each in job.pending],
                "lengths": [each.length for each in job.pending],
                "logprobs": [each.logprob for each in job.pending if each.logprob is not None],
                "rounds": [job.request.tally.drafted, job.request.tally.accepted],
            }
        )
        job.pending.clear()

    def finish(self, job: Job, reason: str) -> None:
        """Release what was held back, close the request's books and free its slot."""
        request = job.request
        del self.jobs[request.key]
        self.keeping.save(request)
        self.engine.remove(request)
        self.loaded.drafting.remember(request)
        self.retreat.tidy()
        self.save()
        text = job.answer.flush()
        if job.pending:
            job.pending[-1].length += len(text)
        if text or job.pending:
            self.send_tokens(job, text)
        usage = {
            "prompt_tokens": request.prompt,
            "completion_tokens": len(request.tokens) - request.prompt,
            "cached_tokens": request.reused,
        }
        self.say(
            {
                "type": "done",
                "key": request.key,
                "finish_reason": reason,
                "usage": usage,
                "stats": statistics(job),
                "books": books(job),
            }
        )
        self.say({"type": "learnt", "report": self.loaded.drafting.controller.report()})


def mode(speculate: bool | str) -> Mode:
    """A request's `speculate` as the controller takes it."""
    if speculate is True or speculate == "auto":
        return "auto"
    if speculate is False or speculate == "off":
        return "off"
    source, _, length = speculate.partition(":")
    sources: dict[str, Source] = {"suffix": "suffix", "model": "model", "chain": "chain"}
    return sources[source], int(length)


def statistics(job: Job) -> dict[str, Any]:
    """The `stats` of a finished request (ipc/PROTOCOL.md)."""
    now = time.monotonic()
    first = job.first_token or now
    after_first = len(job.request.tokens) - job.request.prompt - 1
    tally = asdict(job.request.tally)
    del tally["positions"]
    return {
        "seed": job.request.sampling.seed,
        **tally,
        "sources": dict(job.request.control.rounds) if job.request.control else {},
        "time_to_first_token": first - job.received,
        "tokens_per_second": after_first / (now - first) if after_first > 0 and now > first else 0.0,
    }


def books(job: Job) -> dict[str, Any]:
    """What the front's counters need to know beside the `stats` (daemon/counters.py)."""
    now = time.monotonic()
    return {
        "positions": job.request.tally.positions,
        "queue_seconds": (job.request.started or now) - job.received,
        "seconds": now - job.received,
    }


def main() -> None:
    """Entry point of the child; arguments: the front's socket, and the file of the page it watches."""
    # The front's death must not leave a model in memory; the check closes the gap before prctl took hold.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's Ctrl-C, or its end, is for the front
        signal.signal(number, signal.SIG_IGN)
    logs.guard()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.bind(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, machine.usable())
    settings = Settings.model_validate(msgpack.unpackb(socket.recv())["settings"])
    logs.set_up(settings.log_level, settings.log_content)
    worker = Worker(socket, Pulse(int(sys.argv[2]), settings.hang_seconds))
    try:
        worker.load(settings)
    except DraftdError as error:
        worker.say({"type": "failed", "code": error.code, "message": error.message})
        socket.close(linger=2000)
        return
    worker.run()
    worker.save(every=0.0)
    worker.keeping.conversations.close()
    socket.close(linger=2000)


if __name__ == "__main__":
    main()
