"""What each slot of the target holds, running or free, and which free one the next request gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from draftd.daemon.request import Parked, Request
from draftd.drafts.base import common_prefix, exchange
from draftd.models.base import Target

WORTH_A_COPY = 16  # tokens; fewer are computed about as fast as a slot is copied
CONFINED = "\0"  # begins the owner of what one request computed for itself alone
WORTH_A_PASS = 100  # positions moved between slots for each pass that it saves, at most


@dataclass(slots=True)
class Kept:
    """What an ended request left in its slot."""

    tokens: list[int]
    owner: str  # who may reuse it; "": everyone
    used: int  # when, counted in requests


class Followers(Protocol):
    """The drafts, which keep slots of their own beside the target's (daemon/drafting.py)."""

    def forget(self, slot: int, /) -> None: ...

    def copy(self, source: int, target: int, length: int, /) -> None: ...

    def swap(self, one: int, other: int, /) -> None: ...


class Places:
    """The slots; prefixes are shared between all of them, and copied where a slot must keep its own."""

    def __init__(self, target: Target, drafts: Followers) -> None:
        self.target = target
        self.drafts = drafts
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
        parked = request.parked if request.stored is None else request.stored()
        request.parked = request.stored = None
        source, shared = self.shared(request)
        if parked is not None and (length := common_prefix(parked.tokens, request.tokens)) > shared:
            slot = self._choose(-1, 0)
            shared = self._restore(request, slot, parked, length)
        else:
            slot = self._choose(source, shared)
            if not _may_share(request, self.free[slot].owner):  # what the drafts read there tells as much
                self.drafts.forget(slot)
            if slot != source:
                shared = shared if shared >= WORTH_A_COPY else 0
                if shared:
                    self.target.copy_prefix(source, slot, shared)
                    self.drafts.copy(source, slot, shared)
        del self.free[slot]
        self.taken[slot] = request
        request.slot = slot
        if request.beams is not None:
            request.beams.slots = [slot]
            for _ in range(request.width - 1):
                self._lend(request.beams.slots)
        # The newest token is always fed for its logits, except where only the cache is wanted.
        request.cached = shared if request.cache_only else min(shared, len(request.tokens) - 1)
        self.target.truncate(slot, request.cached)
        if not request.begun:
            request.begun = True
            request.reused = min(request.cached, request.prompt)

    def give(self, request: Request) -> None:
        """A request leaves its slot, which keeps what was computed."""
        self._now += 1
        del self.taken[request.slot]
        self.free[request.slot] = Kept(request.tokens[: request.cached], request.cache_owner, self._now)
        if request.beams is not None:
            self.free |= {slot: Kept([], "", 0) for slot in request.beams.slots[1:]}

    def _lend(self, slots: list[int]) -> None:
        """A further slot for a request that has these; what it held is lost."""
        slot = self._choose(-1, 0)
        del self.free[slot]
        slots.append(slot)  # first: where the rest fails, it is still given back
        self.target.truncate(slot, 0)
        self.drafts.forget(slot)

    def cache(self, request: Request) -> Parked | None:
        """A copy of what was computed for a request, wherever it stands; None if nowhere."""
        if request.parked is not None:
            return request.parked
        kept = self.free.get(request.slot)
        if self.taken.get(request.slot) is request:
            tokens = request.tokens[: request.cached]
        elif kept is not None:  # which may hold more: a stop string cuts an answer once it has left its slot
            tokens = kept.tokens[: len(request.tokens)]
            if request.tokens[: len(tokens)] != tokens:
                return None
        else:
            return None
        state = self.target.save_slot(request.slot) if tokens else None
        return Parked(tokens, state) if state is not None else None

    def close_up(self, requests: Sequence[Request]) -> None:
        """Bring requests to slots that follow each other: an `even` target computes only such together.

        What stands in the way changes places with them. Not while a search holds slots, nor where that would
        take longer than it saves or a slot's content can't be had.
        """
        slots = {request.slot for request in requests}
        count = len(slots)
        if max(slots) - min(slots) < count or any(other.beams for other in self.taken.values()):
            return

        def moved(first: int) -> int:  # positions
            return sum(self._length(slot) for slot in slots ^ set(range(first, first + count)))

        first = min(range(self.target.slots - count + 1), key=moved)
        rounds = min(request.end - len(request.tokens) for request in requests)
        if moved(first) > WORTH_A_PASS * rounds:
            return
        window = set(range(first, first + count))
        for one, other in zip(sorted(slots - window), sorted(window - slots), strict=True):
            if not self._swap(one, other):
                return

    def _swap(self, one: int, other: int) -> bool:
        """Exchange what two slots hold, and who; False where the target can't."""
        lengths = self._length(one), self._length(other)
        states = [
            self.target.save_slot(slot) if length else None
            for slot, length in zip((one, other), lengths, strict=True)
        ]
        if any(state is None and length for state, length in zip(states, lengths, strict=True)):
            return False
        exchange(self.taken, one, other)
        exchange(self.free, one, other)
        for slot in {one, other} & self.taken.keys():
            self.taken[slot].slot = slot
        for slot, state, length in zip((other, one), states, lengths, strict=True):
            self.target.truncate(slot, 0)
            if state is not None:
                self.target.load_slot(slot, state, length)
        self.drafts.swap(one, other)
        return True

    def _length(self, slot: int) -> int:
        """Positions that a slot holds."""
        return self.taken[slot].cached if slot in self.taken else len(self.free[slot].tokens)

    def clear(self) -> None:
        """Forget what stands in the free slots."""
        for slot in self.free:
            self.free[slot] = Kept([], "", self._now)
            self.target.truncate(slot, 0)
            self.drafts.forget(slot)

    def _choose(self, source: int, shared: int) -> int:
        """The free slot whose loss is least: what its owner has nowhere else, by how long it was not used.

        How likely a text is asked for again falls about as one over its age. To go on in `source` loses what
        stands there behind the shared prefix.
        """

        def loss(slot: int) -> tuple[float, bool, bool, int]:
            kept = self.free[slot]
            others = [held for held in self._held() if held[0] != slot and held[1] == kept.owner]
            saved = max((common_prefix(kept.tokens, tokens) for _, _, tokens in others), default=0)
            if slot == source:
                saved = max(saved, shared)
            lost = len(kept.tokens) - saved
            if lost < WORTH_A_COPY or kept.owner.startswith(CONFINED):
                lost = 0
            alone = self.target.even and not {slot - 1, slot + 1} & self.taken.keys()
            return lost / (self._now - kept.used + 1), slot != source, alone, kept.used

        return min(self.free, key=loss)

    def _restore(self, request: Request, slot: int, parked: Parked, length: int) -> int:
        """Put a saved cache into a slot; how many of its positions stand there then."""
        self.drafts.forget(slot)
        try:
            self.target.load_slot(slot, parked.state, length)
        except ValueError as error:
            request.refused = str(error)
            return 0
        return length

    def _held(self) -> list[tuple[int, str, Sequence[int]]]:
        """Each slot, whose it is and what stands there."""
        taken = self.taken.items()
        running = [(slot, each.cache_owner, each.tokens[: each.cached]) for slot, each in taken]
        return [*((slot, kept.owner, kept.tokens) for slot, kept in self.free.items()), *running]


def _may_share(request: Request, owner: str) -> bool:
    return request.reuse and owner == request.cache_owner
