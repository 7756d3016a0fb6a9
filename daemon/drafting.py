"""A round's drafts: look the suffix up, ask the controller, let the model extend, keep what is worth it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from draftd.daemon.calibration import Chosen
from draftd.daemon.controller import Controller
from draftd.daemon.plan import Outcome, Plan, Source
from draftd.drafts.base import Context, Draft, Proposal, common_prefix
from draftd.drafts.suffix import SuffixDraft
from draftd.ipc.errors import InvalidRequest
from draftd.models.groups import tops_of
from draftd.models.rejection import Dice, Law, law_of, one_hot
from draftd.models.sampling import choose, confidence, steadiness

if TYPE_CHECKING:
    from draftd.daemon.request import Request
    from draftd.daemon.scheduler import Work

NOTHING = Plan("none", 0)
WATCHED = 32  # rounds of a request in which the target's certainty is looked at


@dataclass(slots=True)
class Drafted:
    """One request's share of a round: `kept` leading tokens of `made` go to the target."""

    plan: Plan = NOTHING
    found: list[int] = field(default_factory=list)  # all that the suffix offered
    made: Proposal = field(default_factory=Proposal)  # what of it was used, then the model's
    kept: int = 0
    drawn: list[Law] = field(default_factory=list)  # for rejection: what the model's tokens came from

    @property
    def tokens(self) -> list[int]:
        return self.made.tokens[: self.kept]

    @property
    def laws(self) -> list[Law]:
        """What each of `tokens` was drawn from; one-hot where it was not drawn, which is exact for any."""
        found = self.tokens[: self.kept - len(self.drawn)]
        return [one_hot(token) for token in found] + self.drawn

    @property
    def sources(self) -> list[str]:
        """Whose each of `tokens` is: a chain begins with what the suffix found."""
        if self.plan.source != "chain":
            return [self.plan.source] * self.kept
        found = min(self.plan.found, self.kept)
        return ["suffix"] * found + ["model"] * (self.kept - found)


class Drafting:
    """The sources there are and the controller that chooses between them."""

    def __init__(
        self,
        model: Draft | None = None,
        suffix: SuffixDraft | None = None,
        controller: Controller | None = None,
        remembers: bool = True,
    ) -> None:
        self.model = model
        self.suffix = suffix
        self.remembers = remembers  # what requests said, for later ones
        named: dict[Source, object] = {"suffix": suffix, "model": model}
        sources = [source for source, there in named.items() if there is not None]
        self.controller = controller or Controller(sources)
        self.dice = Dice()
        self._going_on = 0  # requests that the model still drafts for in this round
        self.model_seconds = 0.0  # of the last round, our own sampler's time taken off

    def draft(self, batch: Sequence[Work]) -> list[Drafted]:
        """What each request of a round offers the target; all that the model drafts shares its passes."""
        drafts = [Drafted() for _ in batch]
        self.model_seconds = 0.0
        contexts, extended = [], []
        for work, drafted in zip(batch, drafts, strict=True):
            request = work.request
            if request.cache_only and self.model is not None:
                self.model.prepare(request.slot, request.tokens[: request.cached + work.feed])
            if not _may_draft(work):
                continue
            self._plan(request, drafted, batch)
            if drafted.plan.source in ("model", "chain") and not _ended(request, drafted.made.tokens):
                contexts.append(self._context(request, drafted))
                extended.append((request, drafted))
        if contexts and self.model is not None:
            self._extend(contexts, extended)
        self._cut(batch, drafts)
        return drafts

    def _cut(self, batch: Sequence[Work], drafts: Sequence[Drafted]) -> None:
        """Keep of each request's tokens what is worth its rows beside the others', the longest first."""
        widths = [work.feed + len(drafted.made.tokens) for work, drafted in zip(batch, drafts, strict=True)]
        for index in sorted(range(len(batch)), key=lambda index: -widths[index]):
            drafted, request, feed = drafts[index], batch[index].request, batch[index].feed
            drafted.kept = len(drafted.made.tokens)
            # Of tokens drawn for rejection to drop one for what it turned out to be would favour the others.
            if drafted.kept and request.rejection is None:
                others = widths[:index] + widths[index + 1 :]
                costs = request.control.controller if request.control else self.controller
                rows = [costs.seconds([feed + more, *others]) for more in range(drafted.kept + 1)]
                drafted.kept = drafted.plan.keep(drafted.made.confidence, rows)
            widths[index] = feed + drafted.kept

    def watches(self, request: Request) -> bool:
        """Is it of use to know how sure the target is of this request's next token?"""
        model = "model" in self.controller.sources
        return model and request.mode == "auto" and len(request.certainty) < WATCHED

    def learn(self, request: Request, drafted: Drafted, tokens: list[int], seconds: float) -> None:
        """Tell the controller what the target said (`tokens`, before a stop cuts them) and the round took."""
        request.last_rows = 1 + drafted.kept
        if request.control is None or request.mode == "off":
            return
        request.control.learn(
            Outcome(
                confidences=drafted.made.confidence,
                agreed=common_prefix(drafted.made.tokens, tokens),
                emitted=len(tokens),
                kept=drafted.kept,
                found_agreed=common_prefix(drafted.found, tokens),
                seconds=seconds,
                certainty=request.certainty[-1] if len(request.certainty) > request.tally.rounds else None,
            )
        )

    def remember(self, request: Request) -> None:
        """Keep an ended request as a draft for later ones of its scope."""
        shared = self.remembers and request.reuse and request.scope
        if self.suffix is not None and shared and len(request.tokens) > request.prompt:
            self.suffix.remember(request.scope, request.tokens)

    def unlearn(self) -> None:
        """Start to learn anew; requests that run keep what they know until they end."""
        known = self.controller
        self.controller = Controller(
            sorted(known.sources), known.longest, even=known.even, padded=known.padded
        )

    def set_model(self, model: Draft | None) -> None:
        """Draft with this model from the next round on, and free the one there was."""
        if self.model is not None and self.model is not model:
            self.model.close()
        self.model = model
        self.controller.sources = self.controller.sources - {"model"} | ({"model"} if model else set())

    def forget(self, slot: int) -> None:
        """Drop what the sources hold of a slot."""
        for source in (self.model, self.suffix):
            if source is not None:
                source.forget(slot)

    def copy(self, source: int, target: int, length: int) -> None:
        """A slot begins with what another holds: so may the model's."""
        if self.model is not None:
            self.model.copy(source, target, length)

    def swap(self, one: int, other: int) -> None:
        """Two slots change places."""
        for source in (self.model, self.suffix):
            if source is not None:
                source.swap(one, other)

    def _plan(self, request: Request, drafted: Drafted, batch: Sequence[Work]) -> None:
        if request.control is None:
            sampled: Chosen = "sampled" if request.sampling.temperature > 0 else "greedy"
            chosen = "rejection" if request.rejection else sampled
            request.control = self.controller.begin(request.mode, chosen=chosen)
        control = request.control
        remaining = request.end - len(request.tokens)
        found = Proposal()
        if control.looks_up and self.suffix is not None:
            limit = min(self.controller.longest, remaining - 1)
            # A request of an app without a name, or that reuses nothing, has its own text only.
            scope = request.scope if request.reuse and request.scope else None
            (found,) = self.suffix.propose(
                [Context(request.slot, request.tokens, limit, _no_choice, control.follows(), scope)]
            )
            found = _useful(request, found)
        others = [work for work in batch if work.request is not request]
        others.sort(key=self._shares)
        shares = [self._shares(work) for work in others]
        drafted.found = found.tokens
        drafted.plan = control.plan(
            remaining,
            found.confidence,
            elsewhere=[work.feed if work.prefill else work.request.last_rows for work in others],
            able=sum(each > 0 for each in shares),
            willing=sum(each > 1 for each in shares),
            signs=request.certainty,
            unseen=self.model.unseen(request.slot, request.tokens) if self.model is not None else 1,
            length=len(request.tokens),
        )
        used = drafted.plan.found
        drafted.made = Proposal(found.tokens[:used], found.confidence[:used])

    def _shares(self, work: Work) -> int:
        """Might the model draft for a request now? 0: no; 1: it would not, as last asked; 2: yes."""
        mode, control = work.request.mode, work.request.control
        named = mode == "auto" or mode[0] in ("model", "chain")
        if not (named and self.model is not None and _may_draft(work)):
            return 0
        return 2 if control is None or control.willing else 1

    def _context(self, request: Request, drafted: Drafted) -> Context:
        """What the model is asked: to go on from the request and what the suffix already gave."""
        plan, before = drafted.plan, list(drafted.made.confidence)
        picked = list(drafted.made.tokens)
        same = self.model is not None and self.model.same_model

        def pick(row: NDArray[np.float32], position: int) -> tuple[int, float]:
            began = time.perf_counter()
            if request.processors is not None:
                # Where its grammar can't go on behind what was only drafted, that may never be said.
                with suppress(InvalidRequest):
                    request.processors.apply(row, picked)
            tops = tops_of(row)
            if request.rejection is None:
                token = choose(row, request.sampling, position, tops)
            else:
                law = law_of(row, request.sampling, tops)
                token = self.dice.draw(law)
                drafted.drawn.append(law)
            if same and request.rejection is None:
                probability = steadiness(row, token, request.sampling, position, tops)
            else:
                probability = confidence(row, token, tops)
            picked.append(token)
            self._going_on -= len(picked) == plan.limit  # nobody asks whether to go on
            self.model_seconds -= time.perf_counter() - began
            return token, probability

        def proceed(confidences: Sequence[float]) -> bool:
            on = plan.proceed([*before, *confidences], self._going_on) and not _ended(request, picked)
            self._going_on -= not on and len(picked) < plan.limit
            return on

        tokens = request.tokens + drafted.made.tokens if before else request.tokens
        most = plan.limit - len(before)
        return Context(request.slot, tokens, most, pick, proceed, reading=plan.reading)

    def _extend(self, contexts: list[Context], extended: list[tuple[Request, Drafted]]) -> None:
        assert self.model is not None
        began = time.perf_counter()
        self._going_on = len(contexts)
        proposals = self.model.propose(contexts)
        self.model_seconds += time.perf_counter() - began
        if steps := max(len(proposal.tokens) for proposal in proposals):
            read = sum(
                request.control.reading(drafted.plan) for request, drafted in extended if request.control
            )
            tokens = sum(len(proposal.tokens) for proposal in proposals)
            self.controller.drafted(read, len(extended), steps, tokens, self.model_seconds)
        for (request, drafted), proposal in zip(extended, proposals, strict=True):
            more = proposal
            if not proposal.drawn:  # not chosen by `pick`, so what is of no use may be among it
                more = _useful(request, proposal, behind=drafted.made.tokens)
                drafted.drawn.clear()
            drafted.made.tokens += more.tokens
            drafted.made.confidence += more.confidence


def _may_draft(work: Work) -> bool:
    """Is anything drafted for a request in this round?

    A prompt's last pass drafts nothing: the first token should wait neither for the draft's prefill nor,
    where a prefill left only one token to feed, for drafting.
    """
    request = work.request
    begun = not work.prefill and len(request.tokens) > request.prompt
    return begun and request.mode != "off" and request.end - len(request.tokens) >= 2


def _ended(request: Request, drafted: Sequence[int]) -> bool:
    """Would the drafted tokens end the answer? What would follow them is no use."""
    if not drafted:
        return False
    return drafted[-1] in request.stop_ids or (
        request.processors is not None and request.processors.ends(drafted)
    )


def _useful(request: Request, proposal: Proposal, behind: Sequence[int] = ()) -> Proposal:
    """A proposal, which goes on from drafted tokens, up to the answer's end and as its grammar admits."""
    ends = (index for index, token in enumerate(proposal.tokens, 1) if token in request.stop_ids)
    count = next(ends, len(proposal.tokens))
    if request.processors is not None:
        count = request.processors.fitting([*behind, *proposal.tokens[:count]]) - len(behind)
    return Proposal(proposal.tokens[:count], proposal.confidence[:count])


def _no_choice(row: NDArray[np.float32], position: int) -> tuple[int, float]:
    raise AssertionError("a suffix has no logits to choose from")
