"""Who runs in the next round, in which slot, and how much of its prompt is fed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from draftd.daemon.places import WORTH_A_COPY, Followers, Places
from draftd.daemon.request import Parked, Priority, Request
from draftd.drafts.base import common_prefix
from draftd.models.base import Target

INTERLEAVED_CHUNK = 64  # prompt tokens a round while others generate: they should not stall for long
BACKGROUND_CHUNK = 128  # while nobody does: an interactive request that comes then waits for so many
PREFILL_CHUNK = 64  # of a prefill, which the draft's model is fed too
COVERED = 16  # tokens at a prompt's end, the template's closing marks, that a longer prompt may lack


@dataclass(frozen=True, slots=True)
class Work:
    """One request's part of a round: feed this many of its tokens that the target has not seen."""

    request: Request
    feed: int
    last: bool  # the feed reaches the newest token, so logits are wanted
    prefill: bool  # more than the one token a generating request feeds


class Scheduler:
    """By priority; among equals the client with the fewest running requests, then who came first."""

    def __init__(self, target: Target, drafts: Followers, chunk: int) -> None:
        self.target = target
        self.places = Places(target, drafts)
        self.chunk = chunk
        self.waiting: list[Request] = []  # in the order they came, those that had a slot in front
        self.running: list[Request] = []
        self._ended: list[Request] = []  # prefills that are complete, or overtaken by a request
        self.at_work: list[Request] = []  # whom the round works for, or failed at

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running or self._ended)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        if request in self.running:
            self.running.remove(request)
            if self.places.taken.get(request.slot) is request:  # else it failed to get one
                self.places.give(request)
        elif request in self.waiting:
            self.waiting.remove(request)
            request.parked = None
        elif request in self._ended:  # in a round that failed, so nobody has heard of it
            self._ended.remove(request)

    def ended(self) -> list[Request]:
        """The prefills that ended since the last call: complete ones, and those that a request overtook."""
        for request in self.running[-1:]:  # the one whose turn it was
            if request.cache_only and request.cached == len(request.tokens):
                self._end(request)
        ended, self._ended = self._ended, []
        return ended

    def drop_idle(self) -> list[int]:
        """Forget what the free slots hold; these are the slots."""
        self.places.clear()
        return list(self.places.free)

    def schedule(self) -> list[Work]:
        """Admit what fits, preempt what must yield, then one piece of work for whoever runs."""
        self.at_work = []
        passed: list[Request] = []  # waiting, but not for a slot
        while (request := self._next(passed)) is not None:
            if self._soon_shared(request):
                passed.append(request)
            elif self._make_room(request):
                self.waiting.remove(request)
                self.running.append(request)  # first: where it gets no slot, it is still found
                self.at_work = [request]
                self.places.take(request)
                request.started = request.started or time.monotonic()
                if request.cache_only and request.cached == len(request.tokens):
                    self._end(request)
            else:
                break
        self.at_work = asked = [request for request in self.running if not request.cache_only]
        if not asked:
            return self._prefill()
        if self.target.even:
            self.places.close_up(asked)
        generating = any(len(request.tokens) - request.cached == 1 for request in asked)
        urgent = any(request.priority is Priority.INTERACTIVE for request in asked)
        chunk = min(
            self.chunk, INTERLEAVED_CHUNK if generating else self.chunk if urgent else BACKGROUND_CHUNK
        )
        batch = []
        for request in asked:
            pending = len(request.tokens) - request.cached
            feed = min(pending, chunk)
            batch.append(Work(request, feed, last=feed == pending, prefill=pending > 1))
        return batch

    def _next(self, passed: list[Request]) -> Request | None:
        """The waiting request whose turn it is."""
        running = Counter(request.client for request in self.running)

        def rank(request: Request) -> tuple[Priority, bool, int]:
            return request.priority, not request.begun, running[request.client] if request.client else 0

        # A prefill that could not run would only take a slot from what is kept there.
        idle = all(request.cache_only for request in self.running)
        ready = [
            request for request in self.waiting if request not in passed and (idle or not request.cache_only)
        ]
        return min(ready, key=rank, default=None)

    def _soon_shared(self, request: Request) -> bool:
        """Whether a running request is just computing what this one will want to copy."""
        if not request.reuse:
            return False
        best = self.places.shared(request)[1]
        if request.parked is not None:
            best = max(best, common_prefix(request.parked.tokens, request.tokens))
        worth = max(WORTH_A_COPY, (len(request.tokens) - best) / 2)  # else it starts with its own part now
        return any(
            common_prefix(other.tokens, request.tokens) - max(best, other.cached) >= worth
            for other in self.running
            if other.cache_owner == request.cache_owner
            and len(other.tokens) - other.cached > 1
            and other.priority <= request.priority
        )

    def _make_room(self, request: Request) -> bool:
        """See that its slots are free for a request, at the expense of lesser ones."""
        if not request.cache_only:
            for other in [other for other in self.running if other.cache_only]:
                if _covers(request, other):
                    self._end(other)
        lesser = [other for other in self.running if other.priority > request.priority]
        if len(self.places.free) + sum(other.width for other in lesser) < request.width:
            return False
        while len(self.places.free) < request.width:
            last = max(reversed(lesser), key=lambda other: other.priority)
            lesser.remove(last)
            self._preempt(last)
        return True

    def _preempt(self, request: Request) -> None:
        """Take a request off its slot; its cache is kept aside, so that it goes on as if undisturbed."""
        self.at_work = [request]
        if not request.cache_only and request.cached > 0:
            state = self.target.save_slot(request.slot)
            if state is not None:
                request.parked = Parked(request.tokens[: request.cached], state)
        self.remove(request)
        if request.beams is not None:
            request.beams.restart()  # nothing of it was told, and the prompt is kept
        self.waiting.insert(0, request)

    def _prefill(self) -> list[Work]:
        """Nobody waits for an answer: a chunk of one prefill, in turn."""
        if not self.running:
            return []
        request = self.running.pop(0)
        self.running.append(request)
        self.at_work = [request]
        feed = min(len(request.tokens) - request.cached, self.chunk, PREFILL_CHUNK)
        return [Work(request, feed, last=False, prefill=True)]

    def _end(self, request: Request) -> None:
        self.remove(request)
        self._ended.append(request)


def _covers(request: Request, prefill: Request) -> bool:
    """Whether a request holds all that a prefill computes, but for the marks that close its prompt."""
    common = common_prefix(request.tokens, prefill.tokens)
    return request.cache_owner == prefill.cache_owner and len(prefill.tokens) - common <= COVERED
