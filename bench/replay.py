"""What the simulating programs run: a clock, a target and a draft that replay answers, and the engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from places import Place
from recording import Answer, Chosen, Opened, choice
from stateless import Stateless

from draftd.daemon import drafting as drafting_module
from draftd.daemon import engine as engine_module
from draftd.daemon.control import Mode
from draftd.daemon.controller import Controller
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request
from draftd.drafts.base import Choose, Context, Proposal
from draftd.drafts.llama_cpp import Feed, LlamaDraft
from draftd.drafts.suffix import SuffixDraft
from draftd.models.base import Rows, Span
from draftd.models.sampling import Sampling


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
    """models/base.py's Target over recorded answers, one a slot: at each position the row recorded there."""

    def __init__(self, answers: Sequence[Answer], clock: Clock, place: Place) -> None:
        self.answers, self.clock, self.place = answers, clock, place
        self.slots, self.vocab = len(answers), answers[0].rows.shape[1]
        self.context = 1 + max(len(each.prompt) + len(each.rows) for each in answers)

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        began = self.clock.perf_counter()
        rows = [self._rows(span) for span in spans]
        more = sum(len(span.tokens) for span in spans) - 1
        self.clock.set(began + (self.place.pass_ms + self.place.row_ms * more) / 1000)
        return rows

    def _rows(self, span: Span) -> Rows:
        answer = self.answers[span.slot]
        # of the tokens that are predicted
        first = span.start + len(span.tokens) - span.rows + 1 - len(answer.prompt)
        # A row behind a wrong draft, or behind the recorded end, is never looked at: any will do.
        wanted = np.clip(np.arange(first, first + span.rows), 0, len(answer.rows) - 1)
        return answer.rows[wanted]


class ReplayedModel(Stateless):
    """drafts/llama_cpp.py's Model: a pass takes the place's time, and what its rows say is not used."""

    context = sys.maxsize  # what was recorded fitted

    def __init__(self, answers: Sequence[Answer], clock: Clock, place: Place) -> None:
        self.rows, self.clock, self.place = answers[0].rows[:1], clock, place
        self.vocab = self.rows.shape[1]

    def forward(self, spans: Sequence[Feed]) -> list[Rows]:
        more = sum(len(span.tokens) for span in spans) - 1
        moment = self.clock.perf_counter()
        self.clock.set(moment + (self.place.draft_ms + self.place.read_ms * more) / 1000)
        return [self.rows for _ in spans]


class ReplayedDraft(LlamaDraft):
    """The draft as it is but for its choices: those recorded, one answer a slot, else the real one is asked.

    Its passes take the place's time; its own lines and our sampler take the time they take.
    """

    def __init__(self, answers: Sequence[Answer], opened: Opened, clock: Clock, place: Place) -> None:
        super().__init__(ReplayedModel(answers, clock, place))
        self.answers, self.opened, self.clock = answers, opened, clock

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        return super().propose([replace(each, choose=self._recorded(each)) for each in contexts])

    def _recorded(self, context: Context) -> Choose:
        """What stands for the request's sampler: takes its time, and gives what was chosen there."""
        answer, tokens = self.answers[context.slot], list(context.tokens)

        def choose(row: NDArray[np.float32], position: int) -> Chosen:
            context.choose(row, position)  # for its time alone
            began = self.clock.perf_counter()
            unread = tuple(edge for stretch in self._read[context.slot].unread for edge in stretch)
            chosen = choice(answer, self.opened, context.slot, tokens, unread)
            tokens.append(chosen[0])
            self.clock.set(began)
            return chosen

        return choose


@dataclass(slots=True)
class Stream:
    """One answer as its app sees it come, in simulated seconds."""

    asked: float
    came: list[float] = field(default_factory=list)  # when each emission did; the first is of one token

    @property
    def first(self) -> float:
        """Until the first token."""
        return self.came[0] - self.asked

    @property
    def rest(self) -> float:
        """From the first token to the last."""
        return self.came[-1] - self.came[0]

    def gaps(self, since: float = 0.0) -> list[float]:
        """From one emission to the next, of those that ended after `since`."""
        return [after - before for before, after in pairwise(self.came) if after > since]


def streams(
    place: Place, mode: Mode, answers: Sequence[Answer], opened: Opened, controller: Controller, late: int = 0
) -> list[Stream]:
    """Answers that are all asked for at once, as they come from an engine with a slot for each.

    With `late` the last is asked for when each of the others has so many tokens, or its end. Prompts are
    computed anew. Ends with a sentence where an answer differs from the recorded one.
    """
    requests = [request(key, answer, mode) for key, answer in enumerate(answers)]
    clock = Clock()
    with told_by(clock):
        drafting = Drafting(ReplayedDraft(answers, opened, clock, place), SuffixDraft(), controller)
        # Who comes first gets the first of the empty slots, so each request's slot replays its own answer.
        engine = Engine(Replay(answers, clock, place), drafting)
        asked = requests[:-1] if late else requests
        for each in asked:
            engine.add(each)
        found = [Stream(clock.perf_counter()) for _ in asked]
        while engine.busy or len(found) < len(requests):
            if len(found) < len(requests) and all(
                len(each.tokens) >= min(each.prompt + late, each.end) for each in asked
            ):
                engine.add(requests[-1])
                found.append(Stream(clock.perf_counter()))
            emissions = engine.step()
            now = clock.perf_counter()
            for emission in emissions:
                found[emission.request.key].came.append(now)
    for each, answer in zip(requests, answers, strict=True):
        if each.tokens[each.prompt :] != answer.tokens:
            raise SystemExit(f"the replayed answer of {answer.category} differs from the recorded one")
    return found


def request(key: int, answer: Answer, mode: Mode) -> Request:
    """For just the tokens of a recorded answer, with nothing of earlier requests."""
    prompt, end = len(answer.prompt), len(answer.prompt) + len(answer.rows)
    return Request(key, list(answer.prompt), prompt, end, Sampling(), frozenset(), mode=mode, reuse=False)
