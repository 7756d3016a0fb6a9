"""The requests in flight as the front knows them: what each app asked, what it has been sent, how it ends."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draftd.daemon.admission import Admission
from draftd.daemon.apps import Apps
from draftd.daemon.counters import Counters
from draftd.daemon.delivery import Delivery
from draftd.daemon.job import Job, Reason, ended_before
from draftd.daemon.lifetime import Lifetime
from draftd.daemon.logs import content, fields
from draftd.daemon.prefills import Prefills
from draftd.daemon.settings import Settings
from draftd.ipc import messages
from draftd.ipc.errors import Cancelled, DraftdError, EngineFailed, InvalidRequest, from_code

log = logging.getLogger("draftd.front")
NOTHING: Mapping[str, Any] = {}

MAX_ENDS = 3  # engines that a request may end without a token in between; fewer than end the daemon's tries


class Jobs:
    """Requests by the front's key and by connection and id."""

    def __init__(
        self,
        settings: Settings,
        apps: Apps,
        lifetime: Lifetime,
        tell_engine: Callable[[dict[str, Any]], None],
    ) -> None:
        self.settings = settings
        self.apps = apps
        self.lifetime = lifetime  # each request holds the engine from its first moment to its last
        self.tell_engine = tell_engine
        self.admission = Admission()
        self.counters = Counters()
        self.by_key: dict[int, Job] = {}
        self.by_client: dict[tuple[bytes, str], Job] = {}
        self.prefills = Prefills(apps, lifetime, tell_engine)
        self.finished = 0
        self._next_key = 0

    def __len__(self) -> int:
        return sum(not job.ended for job in self.by_key.values())

    def clients(self) -> set[bytes]:
        """The connections that have requests open, or a prefill."""
        return {client for client, _ in self.by_client} | self.prefills.by_client.keys()

    def counts(self) -> dict[str, int]:
        count = len(self)
        running = min(count, self.settings.slots)
        return {"running": running, "waiting": count - running, "finished": self.finished}

    def active(self) -> list[dict[str, Any]]:
        """Each open request, the oldest first: the `active` of a full status."""
        now = time.monotonic()
        return [
            {
                "request": job.key,
                "app": self.apps.name(job.delivery.client),
                "state": "running" if index < self.settings.slots else "waiting",
                "seconds": now - job.body["received"],
                "tokens": job.tokens,
                "tokens_per_second": job.pace(now),
                "drafted": job.drafted,
                "accepted": job.accepted,
            }
            for index, job in enumerate(job for job in self.by_key.values() if not job.ended)
        ]

    # ---- from the apps

    def open(self, client: bytes, message: messages.Generate) -> None:
        """Take a request on, say so, and hand it to the engine; DraftdError if it can't be taken."""
        if (client, message.id) in self.by_client or self.prefills.holds(client, message.id):
            raise _in_use(message.id)
        self.admission.admit(message, self.settings, len(self))
        now = time.monotonic()
        had = message.had()
        self._next_key += 1
        front = {"type", "id", "model", "credit", "deadline_ms", "resume", "keep_alive"}
        body = message.model_dump(exclude=front)
        body["seed"] = secrets.randbits(63) if message.seed is None else message.seed
        body |= self._whose(client)
        body["received"] = now
        job = Job(
            key=self._next_key,
            delivery=Delivery(client, message.id, message.credit),
            body=body,
            deadline=None if message.deadline_ms is None else now + message.deadline_ms / 1000,
            keep_alive=message.keep_alive,
            emitted=[list(each.tokens) for each in had],
            characters=[each.characters for each in had],
            endings=[ended_before(each, body["seed"] + index) for index, each in enumerate(had)],
        )
        self.lifetime.acquire(job.key)
        self.by_key[job.key] = self.by_client[client, message.id] = job
        if self.settings.log_content:
            log.info("request%s", fields(request=job.key, app=self.apps.name(client), prompt=prompt(message)))
        self.apps.reply(client, messages.Accepted(id=message.id, seed=body["seed"]))
        self.submit(job)

    def open_prefill(self, client: bytes, message: messages.Prefill) -> None:
        """Take a prefill on; DraftdError if it can't be taken."""
        if (client, message.id) in self.by_client:
            raise _in_use(message.id)
        others = len(self.prefills) - (client in self.prefills.by_client)  # its own last one makes room
        self.admission.admit(message, self.settings, others)
        body = message.model_dump(exclude={"type", "id", "model"}) | self._whose(client)
        self.prefills.open(client, message.id, body)

    def _whose(self, client: bytes) -> dict[str, str]:
        """Of which connection a request is, and whose text and caches it may start from."""
        owner, connection = self.apps.owner(client), client.hex()
        return {
            "client": connection,
            "user": self.apps.user(client),
            "app": self.apps.name(client),
            "scope": "all apps" if self.settings.share_history else owner,
            "cache_owner": "" if self.settings.share_prefixes else f"app {owner}" if owner else connection,
        }

    def pay(self, client: bytes, message: messages.Credit) -> None:
        """An app takes more of an answer; unknown ids are ignored, for the request may have just ended."""
        job = self.by_client.get((client, message.id))
        if job is not None and job.delivery.credit is not None:
            job.delivery.credit += message.credit
            job.delivery.since = None
            self.push(job)

    def stop(self, job: Job, reason: Reason, *, answerable: bool) -> None:
        """End a request before its time; the engine answers with `done` and what there was, if it can."""
        if job.ended:
            return
        job.stopping = reason
        self.tell_engine({"type": "cancel", "key": job.key, "reason": reason})
        if not answerable:
            self._end_here(job, reason)

    # ---- towards the engine

    def submit(self, job: Job) -> None:
        """Give a request to the engine there is; without one it waits here for the next."""
        self.tell_engine(
            {
                "type": "generate",
                "key": job.key,
                "emitted": job.emitted,
                "characters": job.characters,
                "endings": job.endings,
                **job.body,
            }
        )

    def submit_all(self) -> None:
        """A new engine goes on with what the last one left unfinished."""
        for job in [job for job in self.by_key.values() if not job.ended]:
            if job.stopping is not None:  # the last one ended before it could say so
                self._end_here(job, job.stopping)
            else:
                self.submit(job)
        self.prefills.submit_all()

    # ---- from the engine

    def relay(self, body: dict[str, Any]) -> None:
        """The engine's `tokens`, `done` or `error` on their way to the app that asked."""
        kind, key = body.pop("type"), body.pop("key")
        job = self.by_key.get(key)
        if job is None or job.ended:
            return  # ended from outside
        match kind:
            case "tokens":
                job.took(body, keep_text=self.settings.log_content)
                job.delivery.add(body)
                self.push(job)
            case "ended":
                index, ending = body["index"], body["ending"]
                job.endings[index] = ending
                nothing = {"index": index, "text": "", "tokens": [], "drafted": []}
                job.delivery.add({**nothing, "finish_reason": ending["finish_reason"]})
                self.push(job)
            case "done":
                self.counters.done(body["finish_reason"], body["usage"], body["stats"], body.pop("books"))
                for other in body.get("answers", [])[1:]:
                    self.counters.answer(other["completion_tokens"], other["stats"], other["books"])
                self._end(job, messages.Done(id=job.delivery.id, **body))
            case _:
                self.counters.failed(body["code"])
                self._end(job, messages.Error(id=job.delivery.id, **body))

    def push(self, job: Job) -> None:
        """Send what there is; forget the request once its end is sent, or an error, or its app is gone."""
        outcome = job.delivery.push(self.apps)
        if outcome in ("gone", "unfit") and not job.ended:
            self.drop(job, "client_gone" if outcome == "gone" else DraftdError.code)
        elif outcome in ("gone", "unfit") or (outcome == "sent" and job.ended):
            self._forget(job)

    # ---- ends

    def blame(self, keys: Sequence[int], how: str) -> None:
        """An engine ended while at work on these requests: one that always sees that is not tried again."""
        self.prefills.blame()
        for job in [self.by_key[key] for key in set(keys) if key in self.by_key]:  # one, whatever its answers
            if job.ended:
                continue
            job.ends += 1
            if job.ends == MAX_ENDS:
                log.warning("request %s: given up after %d engines, the last one %s", job.key, job.ends, how)
                self.fail(job, EngineFailed(f"{job.ends} engines ended at this request, the last one {how}"))

    def drop(self, job: Job, code: str, sentence: str = "") -> None:
        """End a request whose app takes nothing more; the sentence is said as far as it still listens."""
        if not job.ended:
            self.tell_engine({"type": "cancel", "key": job.key, "reason": "cancelled"})
            self.counters.failed(code)
            self._close_books(job, code, NOTHING)
        self._forget(job)
        if sentence:
            self.apps.send_error(job.delivery.client, job.delivery.id, from_code(code, sentence))

    def abandon(self, client: bytes, request_id: str, error: DraftdError) -> None:
        """A message that can't be done: end the request that it names, however far that was taken on."""
        job = self.by_client.get((client, request_id))
        if job is not None:
            self.drop(job, error.code, error.message)
            return
        self.counters.failed(error.code)
        if not self.prefills.abandon(client, request_id, error):
            self.apps.send_error(client, request_id, error)

    def fail_all(self, error: DraftdError) -> None:
        for job in list(self.by_key.values()):
            if not job.ended:
                self.fail(job, error)
        self.prefills.fail_all(error)

    def fail(self, job: Job, error: DraftdError) -> None:
        self.counters.failed(error.code)
        self._end(job, messages.Error(id=job.delivery.id, code=error.code, message=error.message))

    def _end_here(self, job: Job, reason: Reason) -> None:
        """End it without the engine's books, which it does not have or can't send."""
        if reason == "cancelled" and not job.tokens:
            self.fail(job, Cancelled("cancelled before the engine had begun"))
            return
        self.counters.failed(reason)
        self._end(job, job.cut(reason))

    def _end(self, job: Job, last: messages.Done | messages.Error) -> None:
        job.delivery.last = last
        if isinstance(last, messages.Done):
            self._close_books(job, last.finish_reason, {"prompt_tokens": last.usage.prompt_tokens})
        else:
            self._close_books(job, last.code, NOTHING)
        self.push(job)

    def _close_books(self, job: Job, reason: str, more: Mapping[str, Any]) -> None:
        """Count it, and one line: how it ended, and what it said only if the operator wants that."""
        self.finished += 1
        now = time.monotonic()
        self.admission.ended(now)
        log.info(
            "request ended%s",
            fields(
                request=job.key,
                app=self.apps.name(job.delivery.client),
                reason=reason,
                seconds=now - job.body["received"],
                **more,
                tokens=job.tokens,
                drafted=job.drafted,
                accepted=job.accepted,
                answer=content(job.text) if self.settings.log_content else None,
            ),
        )

    def _forget(self, job: Job) -> None:
        del self.by_key[job.key]
        del self.by_client[job.delivery.client, job.delivery.id]
        self.lifetime.release(job.key, time.monotonic(), job.keep_alive)


def _in_use(request_id: str) -> InvalidRequest:
    return InvalidRequest(f"request id {request_id} is in use on this connection: choose another")


def prompt(message: messages.Generate) -> str | None:
    """What of a request may be logged where content is."""
    if message.messages is not None:
        return content(" | ".join(f"{each.role}: {each.content}" for each in message.messages))
    return content(message.prompt if message.prompt is not None else f"{len(message.tokens or [])} tokens")
