"""The requests in flight as the front knows them: what each app asked, what it has been sent, how it ends."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from draftd.daemon.admission import admit
from draftd.daemon.apps import Apps
from draftd.daemon.counters import Counters
from draftd.daemon.logs import content, fields
from draftd.daemon.prefills import Prefills
from draftd.daemon.settings import Settings
from draftd.ipc import messages
from draftd.ipc.errors import Cancelled, DraftdError, EngineFailed, InvalidRequest

log = logging.getLogger("draftd.front")
NOTHING: Mapping[str, Any] = {}

MAX_ENDS = 3  # engines that a request may end without a token in between; fewer than end the daemon's tries


@dataclass(slots=True, eq=False)
class Job:
    """A request: enough to send it to another engine where the last one left it."""

    key: int
    client: bytes  # the ROUTER's name of the connection
    id: str
    body: dict[str, Any]  # the generate message for the engine
    emitted: list[int] = field(default_factory=list)  # tokens the client has been sent
    text: str = ""  # of the answer, kept only to be logged
    first: float | None = None  # monotonic seconds of the first token
    drafted: int = 0  # so far, and of these
    accepted: int = 0
    ends: int = 0  # engines that ended while at work on it, since it last got tokens


class Jobs:
    """Requests by the front's key and by connection and id."""

    def __init__(self, settings: Settings, apps: Apps, tell_engine: Callable[[dict[str, Any]], None]) -> None:
        self.settings = settings
        self.apps = apps
        self.tell_engine = tell_engine
        self.by_key: dict[int, Job] = {}
        self.by_client: dict[tuple[bytes, str], Job] = {}
        self.prefills = Prefills(apps, tell_engine)
        self.finished = 0
        self.counters = Counters()
        self._next_key = 0

    def __len__(self) -> int:
        return len(self.by_key)

    def counts(self) -> dict[str, int]:
        running = min(len(self), self.settings.slots)
        return {"running": running, "waiting": len(self) - running, "finished": self.finished}

    def active(self) -> list[dict[str, Any]]:
        """Each open request, the oldest first: the `active` of a full status."""
        now = time.monotonic()
        return [
            {
                "request": job.key,
                "app": self.apps.name(job.client),
                "state": "running" if index < self.settings.slots else "waiting",
                "seconds": now - job.body["received"],
                "tokens": len(job.emitted),
                "tokens_per_second": len(job.emitted) / max(now - job.first, 1e-3) if job.first else 0.0,
                "drafted": job.drafted,
                "accepted": job.accepted,
            }
            for index, job in enumerate(self.by_key.values())
        ]

    # ---- from the apps

    def open(self, client: bytes, message: messages.Generate) -> None:
        """Take a request on, say so, and hand it to the engine; DraftdError if it can't be taken."""
        if (client, message.id) in self.by_client:
            raise InvalidRequest(f"request id {message.id} is in use on this connection: choose another")
        self.prefills.check_id(client, message.id)
        admit(message, self.settings, len(self))
        self._next_key += 1
        body = message.model_dump(exclude={"type", "id", "model"})
        body["seed"] = secrets.randbits(63) if message.seed is None else message.seed
        body |= self._whose(client)
        body["received"] = time.monotonic()
        job = Job(self._next_key, client, message.id, body)
        self.by_key[job.key] = self.by_client[client, message.id] = job
        if self.settings.log_content:
            log.info("request%s", fields(request=job.key, app=self.apps.name(client), prompt=prompt(message)))
        self.apps.send(client, messages.Accepted(id=message.id, seed=body["seed"]))
        self.submit(job)

    def open_prefill(self, client: bytes, message: messages.Prefill) -> None:
        """Take a prefill on; DraftdError if it can't be taken."""
        if (client, message.id) in self.by_client:
            raise InvalidRequest(f"request id {message.id} is in use on this connection: choose another")
        admit(message, self.settings, len(self.prefills))
        body = message.model_dump(exclude={"type", "id", "model"}) | self._whose(client)
        self.prefills.open(client, message.id, body)

    def _whose(self, client: bytes) -> dict[str, str]:
        """Of which connection a request is, and whose text and caches it may start from."""
        name, connection = self.apps.name(client), client.hex()
        return {
            "client": connection,
            "scope": "all apps" if self.settings.share_history else name,
            "cache_owner": "" if self.settings.share_prefixes else f"app {name}" if name else connection,
        }

    def cancel(self, job: Job, *, answerable: bool) -> None:
        """End a request: the engine answers with `done` and what there was, unless it can't answer yet."""
        self.tell_engine({"type": "cancel", "key": job.key})
        if not answerable:
            self.fail(job, Cancelled("cancelled while the models were loading"))

    # ---- towards the engine

    def submit(self, job: Job) -> None:
        """Give a request to the engine there is; without one it waits here for the next."""
        self.tell_engine({"type": "generate", "key": job.key, "emitted": job.emitted, **job.body})

    def submit_all(self) -> None:
        """A new engine goes on with what the last one left unfinished."""
        for job in self.by_key.values():
            self.submit(job)
        self.prefills.submit_all()

    # ---- from the engine

    def relay(self, body: dict[str, Any]) -> None:
        """The engine's `tokens`, `done` or `error` to the app that asked."""
        job = self.by_key.get(body["key"])
        if job is None:
            return  # cancelled, or its app is gone
        message: BaseModel
        match body["type"]:
            case "tokens":
                job.emitted += body["tokens"]
                job.first = job.first or time.monotonic()
                job.drafted, job.accepted = body["rounds"]
                if self.settings.log_content:
                    job.text += body["text"]
                job.ends = 0
                message = messages.Tokens(
                    id=job.id,
                    text=body["text"],
                    tokens=body["tokens"],
                    drafted=body["drafted"],
                    lengths=body["lengths"],
                    logprobs=body["logprobs"],
                )
            case "done":
                self._end(job)
                self.counters.done(body["finish_reason"], body["usage"], body["stats"], body["books"])
                self._log_end(job, body["finish_reason"], body)
                message = messages.Done(
                    id=job.id, finish_reason=body["finish_reason"], usage=body["usage"], stats=body["stats"]
                )
            case _:
                self._end(job)
                self.counters.failed(body["code"])
                self._log_end(job, body["code"])
                message = messages.Error(id=job.id, code=body["code"], message=body["message"])
        if not self.apps.send(job.client, message) and job.key in self.by_key:
            self._end(job)
            self.counters.failed("client_gone")
            self._log_end(job, "client_gone")
            self.tell_engine({"type": "cancel", "key": job.key})

    # ---- ends

    def blame(self, keys: Sequence[int], how: str) -> None:
        """An engine ended while at work on these requests: one that always sees that is not tried again."""
        for job in [self.by_key[key] for key in keys if key in self.by_key]:
            job.ends += 1
            if job.ends == MAX_ENDS:
                log.warning("request %s: given up after %d engines, the last one %s", job.key, job.ends, how)
                self.fail(job, EngineFailed(f"{job.ends} engines ended at this request, the last one {how}"))

    def fail(self, job: Job, error: DraftdError) -> None:
        self._end(job)
        self.counters.failed(error.code)
        self._log_end(job, error.code)
        self.apps.send_error(job.client, job.id, error)

    def fail_all(self, error: DraftdError) -> None:
        for job in list(self.by_key.values()):
            self.fail(job, error)
        self.prefills.fail_all(error)

    def _log_end(self, job: Job, reason: str, body: Mapping[str, Any] = NOTHING) -> None:
        """One line a request: how it ended, and never what it said unless the operator wants that."""
        log.info(
            "request ended%s",
            fields(
                request=job.key,
                app=self.apps.name(job.client),
                reason=reason,
                seconds=time.monotonic() - job.body["received"],
                prompt_tokens=body.get("usage", NOTHING).get("prompt_tokens"),
                tokens=len(job.emitted),
                drafted=job.drafted,
                accepted=job.accepted,
                answer=content(job.text) if self.settings.log_content else None,
            ),
        )

    def _end(self, job: Job) -> None:
        del self.by_key[job.key]
        del self.by_client[job.client, job.id]
        self.finished += 1


def prompt(message: messages.Generate) -> str | None:
    """What of a request may be logged where content is."""
    if message.messages is not None:
        return content(" | ".join(f"{each.role}: {each.content}" for each in message.messages))
    return content(message.prompt if message.prompt is not None else f"{len(message.tokens or [])} tokens")
