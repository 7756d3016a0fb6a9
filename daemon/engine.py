"""The loop: schedule, draft, forward, verify, emit. Token ids only; sockets and text are elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from draftd.daemon.beams import Beams
from draftd.daemon.drafting import Drafted, Drafting
from draftd.daemon.pulse import DRAFTING, FORWARD
from draftd.daemon.request import Parked, Request
from draftd.daemon.scheduler import Scheduler, Work
from draftd.drafts.base import common_prefix
from draftd.ipc.errors import DraftdError, EngineFailed, InvalidRequest
from draftd.models.base import Rows, Span, Target, rows_of_pass
from draftd.models.logprobs import Logprob, logprob
from draftd.models.rejection import Dice, verify_rejection
from draftd.models.sampling import certainty
from draftd.models.verify import verify


@dataclass(frozen=True, slots=True)
class Emission:
    """What one round gave one request; `finish` is the reason once it has ended ("error": see `error`)."""

    request: Request
    tokens: list[int]
    drafted: list[bool]  # by token: had the draft proposed it?
    finish: str | None
    logprobs: list[Logprob]  # by token, where the request asks for them
    error: DraftdError | None = None


class Engine:
    """Runs requests over a target and what drafts for it."""

    def __init__(
        self,
        target: Target,
        drafting: Drafting | None = None,
        *,
        chunk: int = 512,
        beat: Callable[[int, int, Sequence[Work]], None] = lambda stage, rows, batch: None,
    ) -> None:
        """`beat` hears of each piece of work before it begins: its stage, its rows, whose it is."""
        self.target = target
        self.beat = beat
        self.drafting = drafting or Drafting()
        self.scheduler = Scheduler(target, self.drafting, chunk)
        self.dice = Dice()

    def add(self, request: Request) -> None:
        self.scheduler.add(request)

    def remove(self, request: Request) -> None:
        """End a request wherever it stands; its slot keeps what it computed."""
        self.scheduler.remove(request)

    def shared(self, request: Request) -> int:
        """How many of a request's first tokens stand in some slot."""
        return self.scheduler.places.shared(request)[1]

    def cache(self, request: Request) -> Parked | None:
        """A copy of what was computed for a request, wherever it stands; None if nowhere."""
        return self.scheduler.places.cache(request)

    def forget(self) -> None:
        """Drop what ended requests left in their slots."""
        self.scheduler.places.clear()

    @property
    def busy(self) -> bool:
        return self.scheduler.busy

    def step(self) -> list[Emission]:
        """One round for every request that can run."""
        began = time.perf_counter()
        batch = self.scheduler.schedule()
        if not batch:
            return self._ended()
        known = sum(len(work.request.tokens) for work in batch)  # the draft may yet have to read it all
        self.beat(DRAFTING, known, batch)
        drafts = self.drafting.draft(batch)
        spans = [_spans(work, drafted) for work, drafted in zip(batch, drafts, strict=True)]
        forwarding = time.perf_counter()
        self.beat(FORWARD, sum(len(span.tokens) for each in spans for span in each), batch)
        rows = self._forward(spans)
        target_seconds = time.perf_counter() - forwarding
        unchanged = [_unchanged(work.request, each) for work, each in zip(batch, rows, strict=True)]
        verified = [self._verify(*each) for each in zip(batch, drafts, rows, unchanged, strict=True)]
        seconds = time.perf_counter() - began
        self._learn(batch, drafts, verified, spans, target_seconds, seconds)
        emissions = [
            self._emit(work, drafted, tokens, kept)
            for work, drafted, tokens, kept in zip(batch, drafts, verified, unchanged, strict=True)
            if tokens
        ]
        return emissions + self._failed(batch) + self._ended()

    def _failed(self, batch: Sequence[Work]) -> list[Emission]:
        """The ends of those that the round found an error of."""
        failed = [work.request for work in batch if work.request.error is not None]
        for request in failed:
            self.scheduler.remove(request)
        return [Emission(request, [], [], "error", [], request.error) for request in failed]

    def _ended(self) -> list[Emission]:
        return [Emission(request, [], [], "prefilled", []) for request in self.scheduler.ended()]

    def _forward(self, spans: Sequence[Sequence[Span]]) -> list[Rows]:
        """One pass for all spans of all requests; each request's rows."""
        rows = iter(self.target.forward([span for each in spans for span in each]))
        return [
            np.concatenate(list(islice(rows, len(each)))) if len(each) > 1 else next(rows) for each in spans
        ]

    def _verify(self, work: Work, drafted: Drafted, rows: Rows, unchanged: Rows | None) -> list[int]:
        """Accepted drafts and one token more, the target's own.

        Empty while the prompt is being fed, and where the request can't go on: its `error` says why.
        """
        request = work.request
        request.cached += work.feed
        if not work.last:
            return []
        try:
            if request.beams is not None:
                return self._search(request, request.beams, rows, unchanged)
            tokens = self._checked(request, drafted, rows)
        except InvalidRequest as error:  # its grammar
            request.error = error
            return []
        broken = [math.isnan(row[token]) for row, token in zip(rows, tokens, strict=False)]
        if broken[0]:
            return self._end_by_nan(request)
        tokens = tokens[: [*broken, True].index(True)]  # a NaN further on is the next round's first row
        if self.drafting.watches(request):
            request.certainty.append(certainty(rows[0]))
        request.cached += len(tokens) - 1
        self.target.truncate(request.slot, request.cached)
        return tokens

    def _checked(self, request: Request, drafted: Drafted, rows: Rows) -> list[int]:
        """What verification leaves of the drafts, and one token more."""
        if request.rejection is None:
            position = len(request.tokens)
            return verify(rows, drafted.tokens, request.sampling, position, request.processors)
        given = (request.rejection, request.sampling, self.dice, request.processors)
        return verify_rejection(rows, drafted.tokens, drafted.laws, *given)

    def _end_by_nan(self, request: Request) -> list[int]:
        """End a request whose logits are NaN; nothing that was computed for it is used again."""
        request.error = EngineFailed(
            f"the model's logits behind {len(request.tokens)} tokens are not numbers: look for damage with "
            "draftd models verify, and with transformers try a wider dtype"
        )
        request.cached = 0
        return []

    def _search(self, request: Request, beams: Beams, rows: Rows, unchanged: Rows | None) -> list[int]:
        """One step of a beam search: no tokens until it is over, then the whole answer."""
        if math.isnan(rows.max()):
            return self._end_by_nan(request)
        if request.processors is not None:
            for row, hypothesis in zip(rows, beams.parents(), strict=True):
                request.processors.apply(row, hypothesis.tokens)

        def tell(index: int, token: int) -> Logprob:
            assert unchanged is not None
            return logprob(unchanged[index], token, request.logprobs or 0)

        fed = beams.parents()[0].tokens
        for source, slot in beams.advance(rows, None if unchanged is None else tell):
            self.target.copy_prefix(source, slot, len(request.tokens) + len(fed))
        request.cached = len(request.tokens) - 1  # the slots hold more, but share no more than the prompt
        if beams.live:
            request.tally.count(0, 0)
            return []
        return beams.best.tokens

    def _learn(
        self,
        batch: Sequence[Work],
        drafts: Sequence[Drafted],
        verified: Sequence[list[int]],
        spans: Sequence[Sequence[Span]],
        target_seconds: float,
        seconds: float,
    ) -> None:
        """Keep each request's books, and tell the controller what the round took and gave."""
        model_seconds = self.drafting.model_seconds
        fed = [span for each in spans for span in each]
        prompts = any(work.prefill for work in batch)
        if not prompts and (rows := rows_of_pass(self.target, fed)):
            self.drafting.controller.took(rows, target_seconds)
        for work, drafted, tokens in zip(batch, drafts, verified, strict=True):
            tally = work.request.tally
            tally.draft_seconds += model_seconds
            tally.overhead_seconds += seconds - model_seconds - target_seconds
            if work.prefill:
                tally.prefill_seconds += target_seconds
            else:
                tally.verify_seconds += target_seconds
                if work.request.error is None:
                    self.drafting.learn(work.request, drafted, tokens, math.nan if prompts else seconds)

    def _emit(self, work: Work, drafted: Drafted, tokens: list[int], unchanged: Rows | None) -> Emission:
        """Add a round's tokens to their request, cut at a stop token or behind its grammar's end."""
        request = work.request
        accepted = common_prefix(drafted.tokens, tokens)  # of tokens before a dead end: all
        finish = None
        for index, token in enumerate(tokens):
            if token in request.stop_ids:
                tokens, finish = tokens[:index], "stop"
            elif request.processors is not None:
                # One by one: without drafts no token would follow the one that completes the grammar.
                request.processors.accept([token])
                if request.processors.ended:
                    tokens, finish = tokens[: index + 1], "stop"
            if finish is not None:
                accepted = min(accepted, index + 1)  # what lies behind the end was no use
                break
        request.tally.count(drafted.kept, accepted, drafted.plan.source, drafted.sources)
        request.tokens += tokens
        if finish is None and len(request.tokens) >= request.end:
            finish = "length"
        if finish is not None:
            self.scheduler.remove(request)
            if request.control is not None:
                request.control.ended(stopped=finish == "stop")
        logprobs = []
        if request.beams is not None:
            logprobs = request.beams.best.logprobs[: len(tokens)]
        elif unchanged is not None:
            count = request.logprobs or 0
            logprobs = [logprob(row, token, count) for row, token in zip(unchanged, tokens, strict=False)]
        return Emission(request, tokens, [index < accepted for index in range(len(tokens))], finish, logprobs)


def _unchanged(request: Request, rows: Rows) -> Rows | None:
    """The rows as the model gave them, if log-probabilities are asked for: verification changes them."""
    return None if request.logprobs is None else rows.copy()


def _spans(work: Work, drafted: Drafted) -> list[Span]:
    """A request's next tokens with its drafts behind them, and a row for each draft and one more.

    A beam search that is under way has a span for each of its hypotheses.
    """
    request = work.request
    if request.beams is not None and request.beams.live:
        return request.beams.spans(len(request.tokens))
    fed = request.tokens[request.cached : request.cached + work.feed]
    return [Span(request.slot, request.cached, fed + drafted.tokens, drafted.kept + 1 if work.last else 0)]
