"""Beam search over one request's slots: which continuations live on, which have ended, which answer is best.

The rules are those of transformers' `generate(num_beams=k, do_sample=False)` with its default settings, so
both give the same tokens: an answer's score is the mean log-probability of its tokens, a stop token included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from draftd.models.base import Rows, Span
from draftd.models.logprobs import Logprob, likeliest, log_sum


@dataclass(slots=True)
class Hypothesis:
    """One beginning of an answer; its slot holds the prompt and all its tokens but the newest."""

    slot: int
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0  # sum of log-probabilities
    logprobs: list[Logprob] = field(default_factory=list)  # by token, where they are asked for


@dataclass(frozen=True, slots=True)
class Ended:
    """A complete answer, with its stop token if that ended it."""

    score: float  # mean log-probability of a token
    tokens: list[int]
    logprobs: list[Logprob]


Tell = Callable[[int, int], Logprob]  # (which row, token)


class Candidate(NamedTuple):
    score: float
    parent: int
    token: int


class Beams:
    """A search of `width` hypotheses, each in a slot, for an answer of at most `limit` tokens."""

    def __init__(self, width: int, limit: int, stop_ids: frozenset[int]) -> None:
        self.width = width
        self.limit = limit
        self.stop_ids = stop_ids
        self.slots: list[int] = []  # the scheduler's to give, the first holds the prompt
        self.live: list[Hypothesis] = []  # the best first; none before the prompt is computed
        self.ended: list[Ended] = []  # the best first, at most `width`

    def restart(self) -> None:
        """Forget all but the task: the slots are gone."""
        self.slots, self.live, self.ended = [], [], []

    def spans(self, prompt: int) -> list[Span]:
        """What the target is fed behind a prompt of so many tokens: each hypothesis' newest token."""
        return [Span(each.slot, prompt + len(each.tokens) - 1, each.tokens[-1:], 1) for each in self.live]

    def parents(self) -> list[Hypothesis]:
        """Whom the next rows extend: the live ones, or behind the prompt the empty one."""
        return self.live or [Hypothesis(self.slots[0])]

    def advance(self, rows: Rows, tell: Tell | None = None) -> list[tuple[int, int]]:
        """Extend every one of `parents` by its row, [parents, vocab], and keep the best.

        Gives the copies to make, (slot, to slot), before the next spans are fed. The search is over once none
        lives; `best` is the answer then.
        """
        parents = self.parents()
        length = len(parents[0].tokens) + 1
        children: list[Candidate] = []
        for rank, candidate in enumerate(self._candidates(parents, rows)):
            stop = candidate.token in self.stop_ids
            if not stop and length < self.limit:
                if len(children) < self.width:
                    children.append(candidate)
            elif rank < self.width:
                self.ended.append(Ended(candidate.score / length, *_extended(parents, candidate, tell)))
        self.ended.sort(key=lambda answer: -answer.score)
        del self.ended[self.width :]
        # No hypothesis can still pass the worst answer there is, if it goes on as it did so far.
        full = len(self.ended) == self.width
        if children and full and children[0].score / length <= self.ended[-1].score:
            children = []
        return self._place(parents, children, tell)

    @property
    def best(self) -> Ended:
        return self.ended[0]

    def _candidates(self, parents: Sequence[Hypothesis], rows: Rows) -> list[Candidate]:
        """The best continuations, the best first: enough to go on with if every stop token is among them."""
        count = max(2, 1 + len(self.stop_ids)) * self.width
        found = []
        for index, (parent, row) in enumerate(zip(parents, rows, strict=True)):
            base = parent.score - log_sum(row)
            found += [Candidate(base + float(row[t]), index, int(t)) for t in likeliest(row, count)]
        return sorted(found, key=lambda candidate: -candidate.score)[:count]

    def _place(
        self, parents: Sequence[Hypothesis], children: Sequence[Candidate], tell: Tell | None
    ) -> list[tuple[int, int]]:
        """A slot for every child: the first of a parent goes on in its slot, the others in a copy."""
        heirs: dict[int, Candidate] = {}
        for child in children:
            heirs.setdefault(child.parent, child)
        spare = [slot for slot in self.slots if slot not in {parents[index].slot for index in heirs}]
        copies = []
        live = []
        for child in children:
            parent = parents[child.parent]
            slot = parent.slot
            if heirs[child.parent] is not child:
                slot = spare.pop()
                copies.append((parent.slot, slot))
            tokens, logprobs = _extended(parents, child, tell)
            live.append(Hypothesis(slot, tokens, child.score, logprobs))
        self.live = live
        return copies


def _extended(
    parents: Sequence[Hypothesis], candidate: Candidate, tell: Tell | None
) -> tuple[list[int], list[Logprob]]:
    parent = parents[candidate.parent]
    told = [] if tell is None else [*parent.logprobs, tell(candidate.parent, candidate.token)]
    return [*parent.tokens, candidate.token], told
