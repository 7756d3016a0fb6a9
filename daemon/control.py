"""One request's side of the controller: which source drafts in a round, and what came of it.

Of all sources the one of most worth (plan.py) drafts, none if no worth is positive. A second's price is what
the request's recent rounds gave for one, never less than the target alone gives, times the requests that wait
for the round: so the geometric mean of their speeds is what grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import TYPE_CHECKING, Literal

from draftd.daemon.averages import Averages
from draftd.daemon.calibration import Chosen, Leaning, bin_of
from draftd.daemon.foresight import Foresight
from draftd.daemon.plan import Outcome, Plan, Source, best_cut, expect, expected_tokens, profile

if TYPE_CHECKING:
    from draftd.daemon.controller import Controller

Mode = Literal["auto", "off"] | tuple[Source, int]  # or a source and a fixed length, for benchmarks

FIRST = 8  # tokens drafted at most while it is not known what one takes
PROBING = 0.01  # share of all time that may be spent on finding out what no longer pays
PURSE = 8.0  # passes of the target that probing can save up, or as many as the next probe takes
BESIDE = 1.0  # rounds' worth of what others' rounds say of a request's pace, where its drafting delays them
BET, STAKE = 4.0, 0.4  # rounds in which reading must be won back, and more for each token that came already
WINDOW = 32  # newest tokens that the draft reads where all would be too large a bet
DULL = 0.3  # share of its acceptance that a draft loses which reads next to nothing of its text
HOPELESS = 0.005  # chance of being reached below which no row is worth its time, however cheap rows are
MARGIN = 0.02  # tokens a round that the model must gain over doing without
FRESH = 150  # rounds after which the target's plain pass is looked at again


class Control:
    """One request's side: plan a round, then learn what came of it."""

    def __init__(self, controller: Controller, mode: Mode, chosen: Chosen) -> None:
        self.controller = controller
        self.mode: Mode = mode
        self.rounds: Counter[str] = Counter()  # by source, for the request's stats
        self.leanings = {
            source: Leaning(controller.calibrations[source, chosen]) for source in ("suffix", "model")
        }
        self._unseen = self._length = 1
        self._paces = {False: Averages(0.9, 2), True: Averages(0.9, 2)}
        self._copying = False
        self._emitted = 0
        self._modelled = Averages(0.9, 3)
        # Each disappointment is paid from the purse; an overdrawn one has to be filled before the next.
        hope = controller.hope if controller.purse > -PURSE * controller.target.seconds(1) else 0.0
        self._foresight = Foresight(controller, hope)
        self._other = 0.0  # share of recent rounds in which the model rested
        self._lost = 0.0  # plain passes that model drafting has cost more than it gave
        self._plan = Plan("none", 0)
        self._found: Sequence[float] = ()
        self._elsewhere: Sequence[int] = ()  # the others' rows in the next pass
        self._sharing = 1  # requests that draft alike in a round, this one included
        self.willing = mode not in ("auto", "off") and mode[0] in ("model", "chain")

    @property
    def looks_up(self) -> bool:
        """Is it of use to look a suffix up for this request?"""
        if self.mode == "off" or "suffix" not in self.controller.sources:
            return False
        return self.mode == "auto" or self.mode[0] in ("suffix", "chain")

    def follows(self) -> Callable[[Sequence[float]], bool]:
        """For one look-up: is a token more worth looking up behind those with these confidences?"""
        if self.mode != "auto":
            return lambda _: True
        rates, reach = self.leanings["suffix"].rates(), 1.0

        def hopeful(confidences: Sequence[float]) -> bool:
            nonlocal reach
            reach *= rates[bin_of(confidences[-1])]
            return reach > HOPELESS

        return hopeful

    def plan(
        self,
        remaining: int,
        found: Sequence[float] = (),
        elsewhere: Sequence[int] = (),
        able: int = 0,
        willing: int = 0,
        signs: Sequence[float] | None = None,
        unseen: int = 1,
        length: int = 1,
    ) -> Plan:
        """What to draft now.

        `remaining`: tokens that the request may still give; `found`: confidences of what the suffix offers;
        `elsewhere`: what each other request adds to the pass (last round's will do); `able`: so many of them,
        the last ones, may draft by the model in this round; `willing`: the last of these would if all did;
        `signs`: how sure the target was of its first tokens, if that is looked at; `unseen`: tokens that the
        draft has yet to read before its next one, of `length` in all.
        """
        limit = max(0, min(self.controller.longest, remaining - 1))
        self._found = found = found if self.looks_up else ()
        self._elsewhere = elsewhere
        self._unseen = max(1, unseen)
        self._length = max(length, self._unseen)
        if self.mode == "off" or not limit:
            plan = Plan("none", 0)
        elif self.mode != "auto":
            plan = self._fixed(self.mode[0], min(limit, self.mode[1]), len(found))
        else:
            ahead = self._foresight.acceptance(None if self._modelled.weight else signs)
            plan = self._choose(limit, remaining, ahead, able, min(willing, able))
        self._plan = plan
        self.rounds[plan.source] += 1
        self.controller.choices[plan.source] += 1
        return plan

    def _fixed(self, source: Source, limit: int, found: int) -> Plan:
        used = min(limit, found) if source in ("suffix", "chain") else 0
        if source == "none" or limit <= 0 or (source == "suffix" and not used):
            return Plan("none", 0)
        if source == "chain":
            source = "model" if not used else "suffix" if used == limit else "chain"
        return Plan(source, used if source == "suffix" else limit, used)

    def _choose(self, limit: int, remaining: int, ahead: float, able: int, willing: int) -> Plan:
        """Alone nobody would begin what pays once several share its passes.

        So one asks what it would do if all did likewise, then what to do with those who said that they would.
        """
        shared = self.controller
        rates = (self.leanings["suffix"].rates(), self.leanings["model"].rates())
        self._copying = expected_tokens(self._found[:limit], rates[0]) > 1.0
        trust = BESIDE if self._elsewhere else 4.0
        tokens, length = self._paces[self._copying].over(shared.paces[self._copying], trust)
        # Every request of the round waits: in shares of what each has of a round, as much as this one.
        price = tokens / max(length * shared.target.seconds(1), 1e-9)
        price = (1 + len(self._elsewhere)) * max(price, 1.0 / shared.seconds([1, *self._elsewhere]))
        if self._wants_plain(price):
            return Plan("none", 0)
        asked = limit, remaining, price, rates, ahead
        best, probe, seconds = self._best(*asked, sharing=1 + able)
        self.willing = best.source in ("model", "chain")
        if self.willing and willing < able:
            best, probe, seconds = self._best(*asked, sharing=1 + willing)
        if self._modelled.weight and "model" in shared.sources and not self._copying:
            pays = best.source in ("model", "chain")
            self._foresight.judge(pays, self.rounds["model"], self._lost, ahead)
        if best.source in ("none", "suffix"):
            shared.wanted = seconds if isfinite(seconds) else 0.0
            if seconds <= shared.purse:
                shared.purse -= seconds
                return probe
        return best

    def _best(
        self,
        limit: int,
        remaining: int,
        price: float,
        rates: tuple[list[float], list[float]],
        ahead: float,
        sharing: int,
    ) -> tuple[Plan, Plan, float]:
        """The plan of most worth; one that shows what the model is worth now, and the seconds it may lose."""
        shared = self.controller
        target, draft = shared.target, shared.draft
        self._sharing = sharing
        rows = self._pass(limit, sharing)
        alone = self._pass(limit, 1) if sharing > 1 else rows
        plain = target.seconds(1)
        steps = [draft.seconds(count) / count for count in range(1, sharing + 1)]
        step = steps[-1]

        def plan(
            source: Source, most: int, found: int, reading: int | None = None, keen: float = 1.0
        ) -> Plan:
            return Plan(source, most, found, price, rates, keen * ahead, steps, rows, alone, reading)

        # Others may have found nothing: what this request's rows add to theirs is its own.
        cut, offered, _, reach = best_cut(self._found[:limit], rates, limit, price, alone)
        best = plan("suffix", cut, cut) if cut else Plan("none", 0)
        if "model" not in shared.sources:
            return best, best, inf
        # What a drafted token takes shows once the draft has caught up; with others, in passes for several.
        if not any(map(draft.known, range(1, 1 + sharing))):
            limit = min(limit, FIRST)
            if self._unseen <= 2:
                return plan("model", limit, 0), best, inf
        gain, drafted, extra = self._modelled.over(shared.modelled, 3.0)
        rounds = max(1.0, min(remaining, max(shared.answer(), self._emitted)) / (1.0 + gain))
        carried = max(1.0 / rounds, self._other)
        stake = (BET + STAKE * self._emitted) * plain / (1 + len(self._elsewhere))  # the others wait as well
        worth, probe = offered, inf
        options: list[tuple[Source, int, float]] = [("model", 0, 1.0)]
        if cut and cut < limit:
            options.append(("chain", cut, reach))
        for source, used, reached in options:
            most, fed = limit - used, self._unseen + used
            share = min(1.0, most / max(drafted, 1.0))
            for reading in (None, WINDOW + used) if fed > WINDOW + used else (None,):
                read = reading or fed
                keen = 1.0 - DULL * (fed - read) / self._length
                typical = 0.0
                if self._modelled.weight or shared.modelled.weight > 1.0:
                    typical = share * (reached * keen * gain - price * (drafted * step + extra * plain))
                value = max(typical, profile(reached, keen * ahead, most, price, step, rows[used:]))
                value += offered if used else 0.0
                catch_up = draft.seconds(read) - draft.seconds(1)
                if not used:
                    probe = max(0.0, offered - value + price * catch_up)
                net = value - price * catch_up * (1.0 if used else carried)
                if catch_up <= stake * max(0.0, value - offered) and net > worth + MARGIN:
                    best, worth = plan(source, limit, used, reading, keen), net
        return best, plan("model", limit, 0, WINDOW), probe / price

    def _pass(self, drafted: int, sharing: int) -> list[float]:
        """Seconds of the target's next pass by how many drafted rows this request has in it.

        Where several draft alike (`sharing`), each one's share of what their rows add to one of each.
        """
        shared, others = self.controller, self._elsewhere
        if not others:
            return shared.target.table(1 + drafted)[1:]
        if sharing == 1:
            return [shared.seconds([1 + mine, *others]) for mine in range(drafted + 1)]
        rest = list(others[: 1 + len(others) - sharing])
        passes = [shared.seconds([1 + mine] * sharing + rest) for mine in range(drafted + 1)]
        return [passes[0] + (took - passes[0]) / sharing for took in passes]

    def _wants_plain(self, price: float) -> bool:
        """Is it time to see what the target alone takes? At once if never seen, later now and then."""
        shared = self.controller
        if self._elsewhere or shared.target.observed < 2:
            return False
        if not shared.target.known(1):
            return True
        return shared.since_plain > FRESH and price * shared.target.seconds(1) < 2.0

    def ended(self, stopped: bool) -> None:
        """The answer is over; `stopped`: by its own end, not for want of room for more."""
        if self.mode != "off":
            self.controller.ends.add(self._emitted, float(stopped))

    def reading(self, plan: Plan) -> int:
        """Tokens that the draft reads for this round's first token of its own."""
        read = self._unseen + plan.found
        return min(read, plan.reading or read)

    def learn(self, outcome: Outcome) -> None:
        """Take in what the planned round gave and took."""
        shared, plan = self.controller, self._plan
        emitted = max(1, outcome.emitted)
        self._emitted += emitted
        drafted = list(outcome.confidences)[: shared.longest]
        used = min(plan.found, len(drafted))
        modelled = len(drafted) - used
        self._learn_acceptance(drafted, used, max(0, outcome.agreed), emitted, max(0, outcome.found_agreed))
        if modelled and not used and outcome.certainty is not None:
            shared.certain.learn(bin_of(outcome.certainty), outcome.agreed > 0)
        self._other += 0.3 * ((self._copying and not modelled) - self._other)
        if self.mode == "auto":  # what is drafted to order says nothing about rounds at their best
            self._learn_pace(outcome, drafted, used, modelled)
        self._plan, self._found = Plan("none", 0), ()  # a round too near the end for a plan comes without one

    def _learn_acceptance(
        self, drafted: list[float], used: int, agreed: int, emitted: int, found_agreed: int
    ) -> None:
        suffix, model = self.leanings["suffix"], self.leanings["model"]
        for index in range(min(len(self._found), emitted, found_agreed + 1)):
            suffix.learn(bin_of(self._found[index]), index < found_agreed)
        for index in range(used, min(len(drafted), emitted, agreed + 1)):
            model.learn(bin_of(drafted[index]), index < agreed)

    def _learn_pace(self, outcome: Outcome, drafted: list[float], used: int, modelled: int) -> None:
        """Tokens expected of the round rather than counted: the same mean with less noise."""
        shared, plain = self.controller, self.controller.target.seconds(1)
        kept = min(outcome.kept, len(drafted)) if self._plan.source != "none" else 0
        rates = (self.leanings["suffix"].rates(), self.leanings["model"].rates())
        given = expect(drafted, used, kept, rates)
        if given.reached:
            self._foresight.learn(given.ahead / given.reached, weight=given.reached)
        passes = self._pass(kept, self._sharing)
        extra = passes[kept] - passes[0]
        if modelled and not used:  # beside others its rows may save a pass (Controller.seconds): no cost
            for averages in (self._modelled, shared.modelled):
                averages.add(given.gain, modelled, max(0.0, extra) / plain)
        if not isfinite(outcome.seconds):
            return
        expected = passes[0] + self._sharing * extra
        if modelled:
            expected += shared.draft.seconds(max(self.reading(self._plan), self._sharing))
            expected += (modelled - 1) * shared.draft.seconds(self._sharing)
        length = min(max(outcome.seconds, 0.6 * expected), 1.6 * expected) / plain
        if modelled:
            self._lost += (length - passes[0] / plain) / self._sharing - given.tokens
        for averages in (self._paces[self._copying], shared.paces[self._copying]):
            averages.add(1.0 + given.tokens, length)
        saved = PROBING * length * plain / (1 + len(self._elsewhere))  # others of the round save from it too
        shared.purse = min(shared.purse + saved, max(PURSE * plain, shared.wanted))
