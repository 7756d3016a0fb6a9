"""What each slot of the target holds, running or free, and which free one the next request gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from draftd.daemon.request import Parked, Request
from draftd.drafts.base import common_prefix
from draftd.models.base import Target

WORTH_A_COPY = 16  # tokens; fewer are computed about as fast as a slot is copied


@dataclass(slots=True)
class Kept:
    """What an ended request left in its slot."""

    tokens: list[int]
    owner: str  # who may reuse it; "": everyone
    used: int  # when, counted in requests


class Places:
    """The slots; prefixes are shared between all of them, and copied where a slot must keep its own."""

    def __init__(
        self, target: Target, forget: Callable[[int], None], copy: Callable[[int, int, int], None]
    ) -> None:
        self.target = target
        self.forget = forget  # tells the drafts that a slot begins anew
        self.copy = copy  # tells them that a slot begins with what another holds
        self.free = {slot: Kept([], "", 0) for slot in range(target.slots)}
        self.taken: dict[int, Request] = {}
        self._now = 0

    def shared(self, request: Request) -> tuple[int, int]:
        """The slot that holds most of a request's first tokens, and how many; of equals a free one."""
        best = (0, False, -1)
        for slot, kept in self.free.items():
            if _may_share(request, kept.owner):
                best = max(best, (common_prefix(kept.tokens, request.tokens), True, slot))
        for slot, other in self.taken.items():
            if _may_share(request, other.cache_owner):
                common = min(other.cached, common_prefix(other.tokens, request.tokens))
                best = max(best, (common, False, slot))
        return best[2], best[0]

    def take(self, request: Request) -> None:
        """Give a request a free slot and what is already computed of its tokens."""
        source, shared = self.shared(request)
        parked = request.parked
        request.parked = None
        if parked is not None and (length := common_prefix(parked.tokens, request.tokens)) > shared:
            slot = self._choose(-1, 0)
            shared = self._restore(request, slot, parked, length)
        else:
            slot = self._choose(source, shared)
            if slot != source:
                shared = shared if shared >= WORTH_A_COPY else 0
                if shared:
                    self.target.copy_prefix(source, slot, shared)
                    self.copy(source, slot, shared)
        del self.free[slot]
        self.taken[slot] = request
        request.slot = slot
        if request.beams is not None:
            request.beams.slots = [slot, *(self._lend() for _ in range(request.width - 1))]
        # The newest token is always fed for its logits, except where only the cache is wanted.
        request.cached = shared if request.cache_only else min(shared, len(request.tokens) - 1)
        self.target.truncate(slot, request.cached)
        if not request.begun:
            request.begun = True
            request.reused = min(request.cached, request.prompt)
        if not request.reuse:
            self.forget(slot)

    def give(self, request: Request) -> None:
        """A request leaves its slot, which keeps what was computed."""
        self._now += 1
        del self.taken[request.slot]
        self.free[request.slot] = Kept(request.tokens[: request.cached], request.cache_owner, self._now)
        if request.beams is not None:
            self.free |= {slot: Kept([], "", 0) for slot in request.beams.slots[1:]}

    def _lend(self) -> int:
        """A further slot for a request; what it held is lost."""
        slot = self._choose(-1, 0)
        del self.free[slot]
        self.target.truncate(slot, 0)
        self.forget(slot)
        return slot

    def cache(self, request: Request) -> Parked | None:
        """A copy of what was computed for a request, wherever it stands; None if nowhere."""
        if request.parked is not None:
            return request.parked
        kept = self.free.get(request.slot)
        if self.taken.get(request.slot) is request:
            tokens = request.tokens[: request.cached]
        elif kept is not None and request.tokens[: len(kept.tokens)] == kept.tokens:
            tokens = kept.tokens
        else:
            return None
        state = self.target.save_slot(request.slot) if tokens else None
        return Parked(tokens, state) if state is not None else None

    def clear(self) -> None:
        """Forget what stands in the free slots."""
        for slot in self.free:
            self.free[slot] = Kept([], "", self._now)
            self.target.truncate(slot, 0)
            self.forget(slot)

    def _choose(self, source: int, shared: int) -> int:
        """The free slot whose loss is least: tokens that stand nowhere else, by how long they were not used.

        How likely a text is asked for again falls about as one over its age. To go on in `source` loses what
        stands there behind the shared prefix.
        """

        def loss(slot: int) -> tuple[float, bool, int]:
            kept = self.free[slot]
            saved = max(
                (common_prefix(kept.tokens, held) for other, held in self._held() if other != slot), default=0
            )
            if slot == source:
                saved = max(saved, shared)
            lost = len(kept.tokens) - saved
            if lost < WORTH_A_COPY:
                lost = 0
            return lost / (self._now - kept.used + 1), slot != source, kept.used

        return min(self.free, key=loss)

    def _restore(self, request: Request, slot: int, parked: Parked, length: int) -> int:
        """Put a saved cache into a slot; how many of its positions stand there then."""
        try:
            self.target.load_slot(slot, parked.state, length)
        except ValueError as error:
            request.refused = str(error)
            return 0
        self.forget(slot)
        return length

    def _held(self) -> list[tuple[int, Sequence[int]]]:
        running = [(slot, request.tokens[: request.cached]) for slot, request in self.taken.items()]
        return [*((slot, kept.tokens) for slot, kept in self.free.items()), *running]


def _may_share(request: Request, owner: str) -> bool:
    return request.reuse and owner == request.cache_owner
