"""Who runs in the next round, in which slot, and how much of its prompt is fed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from draftd.daemon.request import Request
from draftd.drafts.base import common_prefix
from draftd.models.base import Target

INTERLEAVED_CHUNK = 64  # prompt tokens a round while others generate: they should not stall for long


@dataclass(frozen=True, slots=True)
class Work:
    """One request's part of a round: feed this many of its tokens that the target has not seen."""

    request: Request
    feed: int
    last: bool  # the feed reaches the newest token, so logits are wanted
    prefill: bool  # more than the one token a generating request feeds


class Scheduler:
    """First come, first served, over the target's slots; a slot remembers what it holds after its request."""

    def __init__(self, target: Target, forget: Callable[[int], None], chunk: int) -> None:
        self.target = target
        self.forget = forget  # tells the drafts that a slot begins anew
        self.chunk = chunk
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._held: dict[int, list[int]] = {
            slot: [] for slot in range(target.slots)
        }  # free slots, oldest first

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        if request in self.running:
            self.running.remove(request)
            self._held[request.slot] = request.tokens[: request.cached]
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> list[Work]:
        """Admit what fits, then one piece of work for every running request."""
        while self.waiting and self._held:
            self._admit(self.waiting.popleft())
        generating = any(len(request.tokens) - request.cached == 1 for request in self.running)
        chunk = min(self.chunk, INTERLEAVED_CHUNK) if generating else self.chunk
        batch = []
        for request in self.running:
            pending = len(request.tokens) - request.cached
            feed = min(pending, chunk)
            batch.append(Work(request, feed, last=feed == pending, prefill=pending > 1))
        return batch

    def _admit(self, request: Request) -> None:
        """Give a request the free slot that already holds most of its tokens."""
        shared = {
            slot: common_prefix(held, request.tokens) if request.reuse else 0
            for slot, held in self._held.items()
        }
        request.slot = max(shared, key=lambda slot: shared[slot])
        del self._held[request.slot]
        # The newest token is always fed: its logits are what the first round needs.
        request.cached = request.reused = min(shared[request.slot], len(request.tokens) - 1)
        self.target.truncate(request.slot, request.cached)
        if not request.reuse:
            self.forget(request.slot)
        self.running.append(request)
