"""What ends a request from outside: its deadline, its app's silence, an app that takes nothing."""

from __future__ import annotations

from collections.abc import Callable

from draftd.daemon.job import Job
from draftd.daemon.jobs import Jobs
from draftd.ipc.errors import LeaseExpired, SlowClient

EVERY = 0.25  # seconds between two looks
GRACE = 1.0  # seconds the engine has to end a request whose deadline has passed, before the front does


class Expiry:
    """A timer of the front's turn."""

    def __init__(self, jobs: Jobs, answerable: Callable[[], bool]) -> None:
        self.jobs = jobs
        self.answerable = answerable  # whether the engine can end a request now
        self._next = 0.0

    def tick(self, now: float) -> float | None:
        """Look through the requests and what waits for room when it is time to; when to be called next."""
        if not self.jobs.by_key and not self.jobs.prefills.by_key and not self.jobs.apps.waits:
            return None
        if now >= self._next:
            self.jobs.apps.retry()
            for job in list(self.jobs.by_key.values()):
                self._look(job, now)
            for prefill in list(self.jobs.prefills.by_key.values()):
                if self.jobs.apps.expired(prefill.client, now):
                    self.jobs.prefills.cancel(prefill.client, prefill.id)
            self._next = now + EVERY
        unfinished = (job for job in self.jobs.by_key.values() if not job.ended)
        deadlines = [job.deadline for job in unfinished if job.deadline is not None]
        self._next = min([self._next, *deadlines])
        return self._next

    def _look(self, job: Job, now: float) -> None:
        delivery = job.delivery
        if self.jobs.apps.expired(delivery.client, now):
            self.jobs.drop(job, LeaseExpired.code, "the app gave no sign of life for longer than its lease")
            return
        if delivery.since is not None:
            if now - delivery.since > self.jobs.settings.credit_wait:
                self.jobs.drop(
                    job,
                    SlowClient.code,
                    f"the app took nothing of its answer for {now - delivery.since:.0f} s: read it as it "
                    "comes, or give more credit at once",
                )
                return
            self.jobs.push(job)  # a full connection may have room again
            if job.key not in self.jobs.by_key:
                return  # it has its end now, or nobody to take it
        if job.deadline is not None and now >= job.deadline and not job.ended:
            self.jobs.stop(job, "deadline", answerable=self.answerable() and not job.told)
            job.told, job.deadline = True, now + GRACE
