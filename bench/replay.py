"""The simulated parts of bench/simulated_gpu.py: a clock, a target and a draft that replay a recording."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from places import Place
from recording import Answer, Opened, choice
from stateless import Stateless

from draftd.daemon import drafting as drafting_module
from draftd.daemon import engine as engine_module
from draftd.drafts.base import Context, Proposal, common_prefix
from draftd.drafts.llama_cpp import Read
from draftd.models.base import Rows, Span


class Clock:
    """This thread's processor time, moved by the difference of what a part should take and what it took.

    Our own code is one thread that waits for nothing, so that is the time it takes on a machine of its own.
    """

    def __init__(self) -> None:
        self.offset = 0.0

    def perf_counter(self) -> float:
        return time.thread_time() + self.offset

    def set(self, moment: float) -> None:
        """Let it be this moment now."""
        self.offset += moment - self.perf_counter()


@contextmanager
def told_by(clock: Clock) -> Iterator[None]:
    """The engine's modules read this clock meanwhile."""
    modules = (engine_module, drafting_module)
    try:
        for module in modules:
            vars(module)["time"] = SimpleNamespace(perf_counter=clock.perf_counter)
        yield
    finally:
        for module in modules:
            vars(module)["time"] = time


class Replay(Stateless):
    """models/base.py's Target over one recorded answer: the row at a position is the recorded one."""

    slots = 1

    def __init__(self, answer: Answer, clock: Clock, place: Place) -> None:
        self.rows, self.prompt, self.clock, self.place = answer.rows, len(answer.prompt), clock, place
        self.vocab, self.context = self.rows.shape[1], self.prompt + len(self.rows) + 1

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        began = self.clock.perf_counter()
        rows = [self._rows(span) for span in spans]
        more = sum(len(span.tokens) for span in spans) - 1
        self.clock.set(began + (self.place.pass_ms + self.place.row_ms * more) / 1000)
        return rows

    def _rows(self, span: Span) -> Rows:
        # of the tokens that are predicted
        first = span.start + len(span.tokens) - span.rows + 1 - self.prompt
        # A row behind a wrong draft, or behind the recorded end, is never looked at: any will do.
        wanted = np.clip(np.arange(first, first + span.rows), 0, len(self.rows) - 1)
        return self.rows[wanted]


class ReplayedDraft(Stateless):
    """drafts/base.py's Draft over one recorded answer, that asks the real one for what was not yet drafted.

    It takes the place's time to feed and draft; our own sampler beside it takes the time it takes.
    """

    def __init__(self, answer: Answer, opened: Opened, clock: Clock, place: Place) -> None:
        self.answer, self.opened, self.clock, self.place = answer, opened, clock, place
        self.read = Read()  # what it is through with

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        (context,) = contexts
        proposal = Proposal(drawn=True)
        tokens = list(context.tokens)
        self.read = self.read.before(tokens, context.reading)
        unread = tuple(edge for stretch in self.read.unread for edge in stretch)
        fed = len(tokens) - len(self.read.tokens)
        self._take(self.clock.perf_counter(), self.place.read_ms * (fed - 1))
        while len(proposal.tokens) < context.limit:
            began = self.clock.perf_counter()
            token, confidence = choice(self.answer, self.opened, context.slot, tokens, unread)
            self._take(began, self.place.draft_ms)
            context.choose(self.answer.rows[0], len(tokens))  # for its time alone
            self.read.tokens = list(tokens)
            tokens.append(token)
            proposal.tokens.append(token)
            proposal.confidence.append(confidence)
            if not context.proceed(proposal.confidence):
                break
        return [proposal]

    def _take(self, began: float, milliseconds: float) -> None:
        self.clock.set(began + milliseconds / 1000)

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        return len(tokens) - common_prefix(self.read.tokens, tokens)

    def forget(self, slot: int) -> None:
        self.read = Read()
