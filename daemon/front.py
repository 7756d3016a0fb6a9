"""The front: binds the apps' socket, checks and routes their requests, and keeps the engine running.

It imports neither torch nor llama.cpp, so it answers half a second after its start and outlives the engine.
"""

from __future__ import annotations

import logging
import secrets
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import zmq
from pydantic import BaseModel

from draftd.daemon.settings import Settings
from draftd.daemon.supervisor import BACKOFF, EngineProcess
from draftd.ipc import codec, endpoint, messages
from draftd.ipc.errors import (
    Cancelled,
    DraftdError,
    EngineFailed,
    InvalidConfig,
    InvalidRequest,
    MalformedFrame,
    ModelNotFound,
    Overloaded,
    UnsupportedVersion,
    from_code,
)

log = logging.getLogger("draftd.front")

NAMES = 4096  # connections whose app is remembered
SEND_QUEUE = 1000  # messages a client may leave unread before its requests are cancelled


@dataclass(slots=True, eq=False)
class Job:
    """A request as the front knows it: enough to send it to another engine where the last one left it."""

    key: int
    client: bytes  # the ROUTER's name of the connection
    id: str
    body: dict[str, Any]  # the generate message for the engine
    emitted: list[int] = field(default_factory=list)  # tokens the client has been sent


class Front:
    """One daemon: a ROUTER towards the apps, a PAIR towards the engine, one thread."""

    def __init__(self, settings: Settings, address: str) -> None:
        self.settings = settings
        self.address = address
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.poller = zmq.Poller()
        self.engine = EngineProcess(self.context, {"settings": settings.model_dump(mode="json")})
        self.jobs: dict[int, Job] = {}
        self.by_client: dict[tuple[bytes, str], Job] = {}
        self.names: dict[bytes, str] = {}  # by connection: what the app calls itself
        self.next_key = 0
        self.finished = 0
        self.started = time.monotonic()
        self.state: Literal["loading", "ready", "restarting", "failed"] = "loading"
        self.detail = "loading 0 %"
        self.progress = 0.0
        self.info: dict[str, Any] = {}
        self.learnt: dict[str, Any] = {}
        self.failure: DraftdError | None = None
        self.stopping = False
        self.wake, self.waker = socket.socketpair()  # signals arrive here

    # ---- life

    def run(self) -> None:
        """Serve until a signal says stop; DraftdError if the pair can't be loaded."""
        router = self.router
        router.set_hwm(SEND_QUEUE)
        router.router_mandatory = 1  # a vanished client is an error to handle, not silence
        router.maxmsgsize = codec.MAX_FRAME
        router.linger = 500  # ms
        router.bind(self.address)
        self._catch_signals()
        log.info("listening at %s", self.address)
        self.poller.register(router, zmq.POLLIN)
        self.poller.register(self.wake.fileno(), zmq.POLLIN)
        self._start_engine()
        try:
            while not self.stopping:
                self._turn()
            if self.failure is None:
                self._fail_all(Cancelled("the daemon is stopping"))
        finally:
            self.engine.stop()
            router.close()
            self.context.term()
            signal.set_wakeup_fd(-1)
            self.wake.close()
            self.waker.close()
        if self.failure is not None:
            raise self.failure

    def _turn(self) -> None:
        """Wait for whatever comes first and handle it."""
        timeout = None
        if self.engine.restart_at is not None:
            timeout = max(0, int((self.engine.restart_at - time.monotonic()) * 1000) + 1)
        ready = dict(self.poller.poll(timeout))
        if self.router in ready:
            self._on_client(self.router.recv_multipart())
        if self.engine.socket in ready:
            self._hear_engine()
        if self.engine.exit_fd in ready:
            self._on_engine_exit()
        if self.engine.restart_at is not None and time.monotonic() >= self.engine.restart_at:
            self._start_engine()
        if self.wake.fileno() in ready:
            self.stopping = True

    def _catch_signals(self) -> None:
        self.wake.setblocking(False)
        self.waker.setblocking(False)
        signal.set_wakeup_fd(self.waker.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    # ---- towards the apps

    def _on_client(self, frames: list[bytes]) -> None:
        client, request_id = frames[0], ""
        try:
            if len(frames) != 2:
                raise MalformedFrame(f"a message is one frame, this one had {len(frames) - 1}")
            body = codec.decode(frames[1])
            request_id = messages.request_id(body)
            self._on_message(client, messages.parse_client(body))
        except DraftdError as error:
            self._send_error(client, request_id, error)

    def _on_message(self, client: bytes, message: messages.ClientMessage) -> None:
        match message:
            case messages.Ping():
                self._send(client, messages.Pong(id=message.id))
            case messages.Generate():
                self._generate(client, message)
            case messages.Cancel():
                job = self.by_client.get((client, message.id))
                if job is not None:
                    self._cancel(job)
            case messages.GetStatus():
                self._send(client, self._status(message.id))
            case messages.Hello():
                if messages.VERSION not in message.versions:
                    theirs = ", ".join(message.versions)
                    raise UnsupportedVersion(f"this daemon speaks protocol {messages.VERSION}, not {theirs}")
                self._learn_name(client, message.client)
                welcome = messages.Welcome(
                    id=message.id,
                    version=messages.VERSION,
                    daemon=version("draftd"),
                    capabilities=["generate"],
                )
                self._send(client, welcome)

    def _learn_name(self, client: bytes, name: str) -> None:
        self.names[client] = name
        while len(self.names) > NAMES:  # connections come and go unseen: the oldest are forgotten
            del self.names[next(iter(self.names))]

    def _generate(self, client: bytes, message: messages.Generate) -> None:
        if self.state == "failed":
            raise EngineFailed(self.detail)
        if message.model not in (None, self.settings.pair):
            raise ModelNotFound(f"this daemon serves {self.settings.pair}, not {message.model}")
        if (client, message.id) in self.by_client:
            raise InvalidRequest(f"request id {message.id} is in use on this connection: choose another")
        if len(self.jobs) >= self.settings.slots + self.settings.queue:
            raise Overloaded(f"{len(self.jobs)} requests are running or waiting: try again in a moment")
        self.next_key += 1
        body = message.model_dump(exclude={"type", "id", "model"})
        body["seed"] = secrets.randbits(63) if message.seed is None else message.seed
        body["scope"] = "all apps" if self.settings.share_history else self.names.get(client, "")
        body["received"] = time.monotonic()
        job = Job(self.next_key, client, message.id, body)
        self.jobs[job.key] = self.by_client[client, message.id] = job
        self._send(client, messages.Accepted(id=message.id, seed=body["seed"]))
        self._submit(job)

    def _submit(self, job: Job) -> None:
        """Give a request to the engine there is; without one it waits here for the next."""
        self.engine.send({"type": "generate", "key": job.key, "emitted": job.emitted, **job.body})

    def _cancel(self, job: Job) -> None:
        """Ask the engine to end it: `done` still comes, with what there was; one that loads can't answer."""
        self.engine.send({"type": "cancel", "key": job.key})
        if self.state != "ready":
            self._end(job)
            self._send_error(job.client, job.id, Cancelled("cancelled while the models were loading"))

    def _end(self, job: Job) -> None:
        del self.jobs[job.key]
        del self.by_client[job.client, job.id]
        self.finished += 1

    def _fail_all(self, error: DraftdError) -> None:
        for job in list(self.jobs.values()):
            self._end(job)
            self._send_error(job.client, job.id, error)

    def _status(self, request_id: str) -> messages.Status:
        running = min(len(self.jobs), self.settings.slots)
        return messages.Status(
            id=request_id,
            state=self.state,
            detail=self.detail,
            progress=self.progress,
            pair=self.settings.pair,
            engine=self.info,
            learnt=self.learnt,
            requests={"running": running, "waiting": len(self.jobs) - running, "finished": self.finished},
            uptime_seconds=time.monotonic() - self.started,
        )

    def _send_error(self, client: bytes, request_id: str, error: DraftdError) -> None:
        self._send(client, messages.Error(id=request_id, code=error.code, message=error.message))

    def _send(self, client: bytes, message: BaseModel) -> bool:
        """False if the client is gone or reads nothing: then it gets no more."""
        try:
            self.router.send_multipart([client, codec.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    # ---- towards the engine

    def _hear_engine(self) -> None:
        for body in self.engine.receive():
            self._on_engine(body)

    def _on_engine(self, body: dict[str, Any]) -> None:
        match body["type"]:
            case "tokens" | "done" | "error":
                job = self.jobs.get(body["key"])
                if job is not None:
                    self._relay(job, body)
            case "learnt":
                self.learnt = body["report"]
            case "progress":
                self.progress = body["fraction"]
                self.detail = f"loading {self.progress:.0%}".replace("%", " %") + f" ({body['stage']})"
            case "ready":
                self.state, self.detail, self.progress, self.info = "ready", "ready", 1.0, body["info"]
                self.engine.ready()
                log.info("ready: %s", self.settings.pair)
            case "failed":
                self.failure = from_code(body["code"], body["message"])
                self._fail_all(self.failure)
                self.stopping = True

    def _relay(self, job: Job, body: dict[str, Any]) -> None:
        message: BaseModel
        match body["type"]:
            case "tokens":
                job.emitted += body["tokens"]
                message = messages.Tokens(
                    id=job.id,
                    text=body["text"],
                    tokens=body["tokens"],
                    drafted=body["drafted"],
                    lengths=body["lengths"],
                )
            case "done":
                self._end(job)
                message = messages.Done(
                    id=job.id, finish_reason=body["finish_reason"], usage=body["usage"], stats=body["stats"]
                )
            case _:
                self._end(job)
                message = messages.Error(id=job.id, code=body["code"], message=body["message"])
        if not self._send(job.client, message) and job.key in self.jobs:
            log.info("request %s: its client is gone or reads nothing, cancelled", job.key)
            self._end(job)
            self.engine.send({"type": "cancel", "key": job.key})

    def _start_engine(self) -> None:
        """Start an engine; it goes on with what the last one left unfinished."""
        self.engine.start()
        self.poller.register(self.engine.socket, zmq.POLLIN)
        self.poller.register(self.engine.exit_fd, zmq.POLLIN)
        for job in self.jobs.values():
            self._submit(job)

    def _on_engine_exit(self) -> None:
        """The engine died: its last words first, then plan the next one or give up."""
        self._hear_engine()
        self.poller.unregister(self.engine.socket)
        self.poller.unregister(self.engine.exit_fd)
        how = self.engine.reap()
        if self.stopping:
            return
        if self.engine.restart_at is None:
            self.state = "failed"
            self.detail = (
                f"the engine {how}, {len(BACKOFF) + 1} times in a row: see its log, then restart draftd"
            )
            log.error("%s", self.detail)
            self._fail_all(EngineFailed(self.detail))
            return
        self.state, self.detail = "restarting", f"the engine {how} and is being restarted"
        log.warning("%s", self.detail)


def serve(settings: Settings) -> None:
    """Run the daemon in this process until SIGTERM or SIGINT; DraftdError says why it can't."""
    logging.basicConfig(
        format="%(levelname)s %(name)s: %(message)s", level=settings.log_level.upper(), stream=sys.stderr
    )
    missing = [name for name in ("torch", "transformers", "llama_cpp") if find_spec(name) is None]
    if missing:
        raise InvalidConfig(f"serving needs {', '.join(missing)}: run `pip install 'draftd[engine]'`")
    address = endpoint.resolve(settings.endpoint)
    with endpoint.prepare(address):
        Front(settings, address).run()
