"""The engine process: load the pair, then turn the front's messages into rounds and rounds into messages.

One thread does it all. ZeroMQ's own I/O thread queues what arrives during a pass, so a cancel takes effect
before the next round, and llama.cpp has a thread to itself (models/llama_cpp.py).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgpack
import zmq

from draftd.daemon import budget, forget, learnt, logs, machine
from draftd.daemon.answers import Choice, Job
from draftd.daemon.asked import Asked
from draftd.daemon.engine import Emission, Engine
from draftd.daemon.faults import Faults, ours
from draftd.daemon.governor import Rung
from draftd.daemon.keeping import Keeping
from draftd.daemon.loader import Loaded, load
from draftd.daemon.pulse import IDLE, LOADING, Pulse
from draftd.daemon.request import Request
from draftd.daemon.retreat import Retreat
from draftd.daemon.scheduler import Work
from draftd.daemon.settings import Settings
from draftd.daemon.text import Answer
from draftd.ipc.errors import DraftdError, EngineFailed, InvalidConfig
from draftd.models.catalog import load_catalog
from draftd.models.child import end_with

log = logging.getLogger("draftd.engine")
SAVE_EVERY = 30.0  # seconds


class Worker:
    """Requests in flight by the front's key, their answers, and the engine that runs them."""

    def __init__(self, socket: zmq.Socket[bytes], pulse: Pulse) -> None:
        self.socket = socket
        self.pulse = pulse
        self.settings: Settings
        self.loaded: Loaded
        self.engine: Engine
        self.keeping: Keeping
        self.retreat: Retreat
        self.asked: Asked
        self.jobs: dict[int, Job] = {}
        self.choices: dict[Request, Choice] = {}
        self.prefills: dict[int, Request] = {}  # by keys of their own
        self.faults = Faults()
        self.saved = time.monotonic()

    def say(self, body: dict[str, Any]) -> None:
        self.socket.send(msgpack.packb(body))

    def load(self, settings: Settings, ran: str | None = None) -> None:
        """Load the pair; where either backend may run it by that which `ran`: the other may not fit."""
        loading = True

        def report(fraction: float, stage: str) -> None:
            self.pulse.beat(LOADING)
            if loading:  # not a draft that the governor had taken away
                self.say({"type": "progress", "fraction": fraction, "stage": stage})

        try:
            if ran is not None and ran in budget.backends(load_catalog().pair(settings.pair), settings):
                settings = settings.model_copy(update={"backend": ran})
            if settings.check_memory:
                room = budget.measure_room(settings)
                settings = budget.check(load_catalog().pair(settings.pair), settings, room)
            self.settings = settings
            self.loaded = load(settings, report)
        except PermissionError as error:  # another engine would fare no better
            raise InvalidConfig(f"cannot load {settings.pair}: {error}") from None
        self.engine = Engine(self.loaded.target, self.loaded.drafting, beat=self.beat)
        self.keeping = Keeping(settings, self.loaded.info, self.engine)
        self.retreat = Retreat(self.loaded, self.engine)
        self.asked = Asked(self.loaded)
        loading = False
        self.say({"type": "ready", "info": self.loaded.info})

    def save(self, every: float = SAVE_EVERY) -> None:
        """Keep what the controller learnt, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self.saved >= every:
            self.saved = now
            learnt.save(self.loaded.learnt_path, self.loaded.drafting.controller.learnt)

    def beat(self, stage: int, rows: int, batch: Sequence[Work]) -> None:
        """A step of the engine begins; its draft may take what the target would."""
        keys = [work.request.key for work in batch if not work.request.cache_only]
        self.pulse.step(stage, rows, keys, self.loaded.drafting.controller.target)

    def run(self) -> None:
        """Rounds while there is work, a blocking wait while there is none, until told to stop."""
        while True:
            while not self.engine.busy or self.socket.poll(0):
                if not self.engine.busy:
                    self.pulse.beat(IDLE)
                frame = self.socket.recv()
                body = msgpack.unpackb(frame)
                self.pulse.read(len(frame), [body["key"]] if body["type"] == "generate" else [])
                if not self.handle(body):
                    return
            self.step()

    def step(self) -> None:
        """One round, and what it gave; a fault of ours in it ends the one request that it was for."""
        try:
            emissions = self.engine.step()
        except Exception as error:
            request = self.faults.blame(self.engine, error)
            if request is None:
                raise
            self.give_up(request, logs.told(error))
            self.engine.forget()  # what it may have left half done
            return
        self.faults.went_well()
        for emission in emissions:
            self.emit(emission)

    def give_up(self, request: Request, error: DraftdError) -> None:
        """End a request, or a prefill, with an error."""
        if request.cache_only:
            self.engine.remove(self.prefills.pop(request.key))
            self.refuse_prefill(request.key, error)
        else:
            for choice in self.jobs.pop(request.key).live:
                del self.choices[choice.request]
                self.engine.remove(choice.request)
            self.refuse(request.key, error)
        self.retreat.tidy()

    def handle(self, body: dict[str, Any]) -> bool:
        """One message of the front; False for the last."""
        match body["type"]:
            case "generate":
                try:
                    self.accept(body)
                except DraftdError as error:
                    self.refuse(body["key"], error)
                except Exception as error:  # a fault of ours must not end the requests of others
                    self.refuse(body["key"], ours(error))
            case "prefill":
                try:
                    self.prefill(body)
                except DraftdError as error:
                    self.refuse_prefill(body["key"], error)
                except Exception as error:
                    self.refuse_prefill(body["key"], ours(error))
            case "cancel_prefill" if body["key"] in self.prefills:
                self.engine.remove(self.prefills.pop(body["key"]))
            case "cancel" if body["key"] in self.jobs:
                for choice in list(self.jobs[body["key"]].live):
                    self.finish(choice, body["reason"])
            case "clear":
                self.clear(body)
            case "govern":
                self.pulse.beat(LOADING)  # a draft, it may be
                self.retreat.to(Rung(body["rung"]))
            case "threads":
                self.retreat.set_threads(body["count"])
            case "log":
                logs.set_up(body["level"], body["content"])
            case "stop":
                return False
        return True

    def refuse(self, key: int, error: DraftdError) -> None:
        self.say({"type": "error", "key": key, "code": error.code, "message": error.message})

    def refuse_prefill(self, key: int, error: DraftdError) -> None:
        self.say({"type": "prefilled", "key": key, "code": error.code, "message": error.message})

    def accept(self, body: dict[str, Any]) -> None:
        prompt = self.asked.prompt(body)
        job = Job(body["key"], len(prompt), body["received"], body["endings"])
        for index, ending in enumerate(job.endings):
            if ending is None:
                job.choices.append(self.choice(job, index, body, prompt))
        job.live = list(job.choices)
        self.jobs[job.key] = job
        self.choices |= {choice.request: choice for choice in job.live}
        for choice in job.choices:  # the first computes the prompt, the others copy it (daemon/scheduler.py)
            self.begin(choice)
        if not job.choices:
            self.done(job)

    def begin(self, choice: Choice) -> None:
        """Give an answer to the engine, or its end if only that was lost with the last engine or front."""
        request = choice.request
        ended = request.processors is not None and request.processors.ended
        if request.beams is None and (choice.text.stopped or ended):
            self.finish(choice, "stop")
        elif request.beams is None and len(request.tokens) >= request.end:
            self.finish(choice, "length")
        else:
            self.engine.add(request)

    def choice(self, job: Job, index: int, body: dict[str, Any], prompt: list[int]) -> Choice:
        """One of a request's answers; one sent again goes on where the last engine left it."""
        emitted = body["emitted"][index]
        request = self.asked.request(body, index, prompt)
        text = Answer(self.loaded.tokenizer.stream(prompt), body["stop"], self.asked.calls(body))
        text.resume(emitted, body["characters"][index])
        if index == 0 and request.reuse == body["cache_prompt"]:
            self.keeping.load(request, body)  # it goes on with the first answer
        return Choice(job, index, request, text, found=len(emitted) if request.beams else 0)

    def prefill(self, body: dict[str, Any]) -> None:
        """Compute a prompt that is still being typed."""
        request = self.asked.prefill(body)
        self.keeping.load(request, body)
        self.prefills[request.key] = request
        self.engine.add(request)

    def prefilled(self, request: Request) -> None:
        """A prefill is complete, or a request took its place."""
        del self.prefills[request.key]
        told = {
            "state": "complete" if request.cached == request.prompt else "superseded",
            "prompt_tokens": request.prompt,
            "cached_tokens": request.reused,
            "computed_tokens": max(0, request.cached - request.reused),  # what it lost in between is no debt
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
            self.say({"type": "cleared", "message": error.message})
        else:
            self.say({"type": "cleared", "files": files})

    def emit(self, emission: Emission) -> None:
        """A round's tokens as text; a stop string ends the answer here, before the next round."""
        if emission.request.cache_only:
            self.prefilled(emission.request)
            return
        choice = self.choices.get(emission.request)
        if choice is None:
            return  # another answer of its request met an error
        if emission.error is not None:
            self.give_up(emission.request, emission.error)
            if isinstance(emission.error, EngineFailed):
                log.error("request %d: %s", choice.job.key, emission.error)
                self.engine.forget()  # what it started from, and its other answers, may be no better
            return
        text = choice.push(emission, self.loaded.tokenizer)
        if text or choice.text.parts:
            self.say(choice.take(text))
        if choice.text.stopped:
            control = emission.request.control
            if emission.finish is None and control is not None:
                control.ended(stopped=True)  # the engine, which reads no text, would have gone on
            self.finish(choice, "stop")
        elif emission.finish is not None:
            self.finish(choice, emission.finish)

    def finish(self, choice: Choice, reason: str) -> None:
        """Release what was held back, close an answer's books, free its slot; the last one ends its job."""
        job, request = choice.job, choice.request
        del self.choices[request]
        job.live.remove(choice)
        self.keeping.save(request)
        self.engine.remove(request)
        self.loaded.drafting.remember(request)
        self.retreat.tidy()
        self.save()
        text = choice.flush()
        if text or choice.pending or choice.text.parts:
            self.say(choice.take(text))
        if reason == "stop" and choice.text.called:
            reason = "tool_calls"
        ending = job.endings[choice.index] = choice.ending(reason)
        if len(job.endings) > 1:
            self.say({"type": "ended", "key": job.key, "index": choice.index, "ending": ending})
        if not job.live:
            self.done(job)

    def done(self, job: Job) -> None:
        del self.jobs[job.key]
        self.say(job.done())
        self.say({"type": "learnt", "report": self.loaded.drafting.controller.report()})
        if self.retreat.incomplete:
            self.pulse.beat(LOADING)
            self.retreat.complete()


def main() -> None:
    """Entry point of the child; arguments: the front's socket, the page that it watches, its process."""
    end_with(int(sys.argv[3]))
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's Ctrl-C, or its end, is for the front
        signal.signal(number, signal.SIG_IGN)
    logs.guard()
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.bind(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, machine.usable())
    first = msgpack.unpackb(socket.recv())
    settings = Settings.model_validate(first["settings"])
    logs.set_up(settings.log_level, settings.log_content)
    worker = Worker(socket, Pulse(int(sys.argv[2]), settings.hang_seconds))
    try:
        worker.load(settings, first.get("ran"))
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
