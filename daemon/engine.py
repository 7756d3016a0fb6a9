"""The loop: schedule, draft, forward, verify, emit. Token ids only; sockets and text are elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from draftd.daemon.scheduler import Scheduler, Work
from draftd.drafts.base import Context, Draft, Proposal
from draftd.models.base import Span, Target
from draftd.models.sampling import Sampling, choose, confidence
from draftd.models.verify import verify


@dataclass(slots=True)
class Tally:
    """What one request cost and what speculation did for it; times in seconds."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_by_position: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    prefill_seconds: float = 0.0
    overhead_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way: `tokens` is the prompt and everything accepted so far."""

    key: int
    tokens: list[int]
    prompt: int  # how many of `tokens` are the prompt's
    end: int  # generate up to this absolute position
    sampling: Sampling
    stop_ids: frozenset[int]
    speculate: bool = True
    reuse: bool = True  # start from what a slot already holds of the prompt
    slot: int = -1
    cached: int = 0  # positions of `tokens` that stand in the target's slot
    reused: int = 0  # of the prompt, when it got its slot
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class Emission:
    """What one round gave one request; `finish` is the reason once it has ended."""

    request: Request
    tokens: list[int]
    drafted: list[bool]  # by token: had the draft proposed it?
    finish: str | None


class Engine:
    """Runs requests over a target and, if there is one, a draft."""

    def __init__(
        self,
        target: Target,
        draft: Draft | None,
        *,
        length: int = 8,
        floor: float = 0.4,
        chunk: int = 512,
    ) -> None:
        self.target = target
        self.draft = draft
        self.length = length  # drafted tokens a round at most
        self.floor = floor  # drafting stops before a token of lower confidence
        self.scheduler = Scheduler(target, draft, chunk)
        self._own_seconds = 0.0  # spent in our sampler while the draft drafts

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def remove(self, request: Request) -> None:
        """End a request wherever it stands; its slot keeps what it computed."""
        self.scheduler.remove(request)

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

    def step(self) -> list[Emission]:
        """One round for every request that can run."""
        began = time.perf_counter()
        batch = self.scheduler.schedule()
        self._own_seconds = 0.0
        drafting = time.perf_counter()
        proposals = self._propose(batch)
        drafted = time.perf_counter()
        spans = [self._span(work, proposal) for work, proposal in zip(batch, proposals, strict=True)]
        forwarding = time.perf_counter()
        rows = self.target.forward(spans)
        forwarded = time.perf_counter()
        emissions = [
            self._verify(work, proposal, logits)
            for work, proposal, logits in zip(batch, proposals, rows, strict=True)
        ]
        draft_seconds = drafted - drafting - self._own_seconds
        target_seconds = forwarded - forwarding
        own_seconds = time.perf_counter() - began - draft_seconds - target_seconds
        for work in batch:
            tally = work.request.tally
            tally.draft_seconds += draft_seconds
            tally.overhead_seconds += own_seconds
            if work.prefill:
                tally.prefill_seconds += target_seconds
            else:
                tally.verify_seconds += target_seconds
        return [emission for emission in emissions if emission is not None]

    def _propose(self, batch: Sequence[Work]) -> list[Proposal]:
        """A proposal for each request of the batch, empty where there is nothing to draft."""
        proposals = [Proposal() for _ in batch]
        if self.draft is None:
            return proposals
        contexts: list[Context] = []
        indices: list[int] = []
        for index, work in enumerate(batch):
            request = work.request
            limit = min(self.length, request.end - len(request.tokens) - 1)
            # A prompt's last pass drafts nothing: the first token should not wait for the draft's prefill.
            if request.speculate and not work.prefill and limit > 0:
                contexts.append(self._context(request, limit))
                indices.append(index)
        if contexts:
            for index, proposal in zip(indices, self.draft.propose(contexts), strict=True):
                proposals[index] = proposal
        return proposals

    def _context(self, request: Request, limit: int) -> Context:
        def pick(row: NDArray[np.float32], position: int) -> tuple[int, float]:
            began = time.perf_counter()
            token = choose(row, request.sampling, position)
            probability = confidence(row, token)
            self._own_seconds += time.perf_counter() - began
            return token, probability

        def proceed(confidences: Sequence[float]) -> bool:
            return confidences[-1] >= self.floor

        return Context(request.slot, request.tokens, limit, pick, proceed)

    def _span(self, work: Work, proposal: Proposal) -> Span:
        request = work.request
        fed = request.tokens[request.cached : request.cached + work.feed]
        rows = len(proposal.tokens) + 1 if work.last else 0
        return Span(request.slot, request.cached, fed + proposal.tokens, rows)

    def _verify(self, work: Work, proposal: Proposal, rows: NDArray[np.float32]) -> Emission | None:
        """Take over what the target agrees with, roll its slot back to that, and say what is new."""
        request, tally = work.request, work.request.tally
        request.cached += work.feed
        if not work.last:
            return None
        position = len(request.tokens)
        tokens = verify(rows, proposal.tokens, request.sampling, position)
        accepted = len(tokens) - 1
        request.cached += accepted
        self.target.truncate(request.slot, request.cached)
        finish = None
        for index, token in enumerate(tokens):
            if token in request.stop_ids:
                tokens, finish = tokens[:index], "stop"
                break
        if finish is None and position + len(tokens) >= request.end:
            finish = "length"
        request.tokens += tokens
        flags = [index < accepted for index in range(len(tokens))]
        tally.rounds += 1
        tally.drafted += len(proposal.tokens)
        tally.accepted += accepted
        counts = tally.accepted_by_position
        counts.extend([0] * (accepted - len(counts)))
        for index in range(accepted):
            counts[index] += 1
        if finish is not None:
            request.cached = min(request.cached, len(request.tokens))
            self.scheduler.remove(request)
        return Emission(request, tokens, flags, finish)
