"""One request on its way through the engine: its tokens, its parameters, its place and its books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from draftd.daemon.beams import Beams
from draftd.daemon.control import Control, Mode
from draftd.daemon.conversations import Conversation
from draftd.ipc.errors import DraftdError
from draftd.models.base import State
from draftd.models.processors import Processors
from draftd.models.rejection import Rejection
from draftd.models.sampling import Sampling

Verify = Literal["coupled"] | Rejection
TOLD = 4096  # rounds whose sources are told: of 128 answers they fit a frame


@dataclass(slots=True)
class Tally:
    """What one request cost and what speculation did for it; times in seconds."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    drafted_by: list[str] = field(default_factory=list)  # each round's source, up to TOLD
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    prefill_seconds: float = 0.0
    overhead_seconds: float = 0.0
    # for the books of all requests: drafted and accepted by source, then position
    positions: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)

    def count(self, drafted: int, accepted: int, by: str = "none", sources: Sequence[str] = ()) -> None:
        """One round's drafts, who drafted and whose each of them was."""
        for index, source in enumerate(sources):
            for counts, reached in zip(
                self.positions.setdefault(source, ([], [])), (drafted, accepted), strict=True
            ):
                counts.extend([0] * (index + 1 - len(counts)))
                counts[index] += index < reached
        self.rounds += 1
        if len(self.drafted_by) < TOLD:
            self.drafted_by.append(by)
        self.drafted += drafted
        self.accepted += accepted
        counts = self.accepted_by_position
        counts.extend([0] * (accepted - len(counts)))
        for index in range(accepted):
            counts[index] += 1


class Priority(IntEnum):
    """Who goes first; `PREFILL` is the work for requests that are yet to come."""

    INTERACTIVE = 0
    BACKGROUND = 1
    PREFILL = 2


@dataclass(frozen=True, slots=True)
class Parked:
    """A cache outside the slots: of a request that was preempted, or of a conversation from the disk."""

    tokens: list[int]
    state: State


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: `tokens` is the prompt and everything accepted so far, always the same list."""

    key: int
    tokens: list[int]
    prompt: int  # how many of `tokens` are the prompt's
    end: int  # generate up to this absolute position
    sampling: Sampling
    stop_ids: frozenset[int]
    processors: Processors | None = None  # None: rows are taken as they are
    mode: Mode = "auto"  # who drafts
    verify: Verify = "coupled"
    beams: Beams | None = None  # search instead of choosing: its own slots, no drafts
    logprobs: int | None = None  # tell each token's log-probability, and those of so many likeliest
    scope: str = ""  # whose earlier requests may be drafted from
    reuse: bool = True  # start from what a slot already holds of the prompt, and draft from earlier requests
    priority: Priority = Priority.INTERACTIVE
    client: str = ""  # the connection it came by: equals of one wait for each other, not for those of others
    cache_owner: str = ""  # whose caches it may start from and leave; "": everyone's
    cache_only: bool = False  # nothing is generated: the slot is made ready for a request to come
    parked: Parked | None = None  # what to start from if no slot holds more
    stored: Callable[[], Parked | None] | None = None  # reads that off the disk, once it gets a slot
    refused: str = ""  # why what was parked could not be used
    conversation: Conversation | None = None  # under what it is kept on disk
    begun: bool = False  # it has had a slot
    slot: int = -1
    started: float | None = None  # monotonic seconds, when it first got a slot
    cached: int = 0  # positions of `tokens` that stand in the target's slot
    reused: int = 0  # of the prompt, when it first got a slot
    control: Control | None = None
    certainty: list[float] = field(default_factory=list)  # of the target, in the first rounds' first tokens
    last_rows: int = 1  # in the last pass
    tally: Tally = field(default_factory=Tally)
    error: DraftdError | None = None  # it can't go on

    @property
    def width(self) -> int:
        """How many slots it needs."""
        return 1 if self.beams is None else self.beams.width

    @property
    def rejection(self) -> Rejection | None:
        """How dice refuse drafts; None: drafts are compared. Greedy there is nothing to throw dice for."""
        return None if self.verify == "coupled" or self.sampling.temperature <= 0.0 else self.verify
