"""Never slower than the target alone: what all requests of one pair on one machine learn together.

An engine asks `begin` for a request's control; each round it asks the control for a plan, drafts by it, and
tells what came of it (`Control.learn`) and once what the target's pass took (`took`). Pure: times come in as
arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from draftd.daemon.averages import Averages
from draftd.daemon.calibration import BINS, BOUNDS, CHOSEN, Calibration, Chosen
from draftd.daemon.control import Control, Mode
from draftd.daemon.costs import KNOTS, Costs
from draftd.daemon.learnt import CalibrationState, CostsState, Learnt
from draftd.daemon.plan import Source
from draftd.models.base import leveled, padded_passes

LONGEST = 256
ANSWER = 24.0  # tokens an answer is expected to have while none has ended


class Controller:
    """What all requests of one pair on one machine share: costs, calibration, typical rounds."""

    def __init__(
        self,
        sources: Sequence[Source] = ("suffix", "model"),
        longest: int = 32,
        learnt: Learnt | None = None,
        *,
        even: bool = False,
        padded: bool = False,
    ) -> None:
        """`even`, `padded`: how the target computes spans of unequal lengths (models/base.py)."""
        self.sources = frozenset(sources)
        self.longest = min(longest, LONGEST)  # tokens drafted a round at most
        self.even, self.padded = even, padded
        self.target = Costs(level=1.0, slope=0.04)
        self.draft = Costs(level=0.1, slope=0.2)
        self.calibrations = {
            (source, chosen): Calibration() for source in ("suffix", "model") for chosen in CHOSEN
        }
        self.certain = Calibration()  # how often the draft agrees by how sure the target is of its own choice
        # A round's tokens and its length in plain passes, apart for where the suffix has much to offer: a
        # second is worth what the tokens next to come take, and these two are not alike.
        self.paces = {False: Averages(0.98, 2), True: Averages(0.98, 2)}
        self.paces[False].add(1.7, 1.0)
        self.paces[True].add(6.0, 1.1)
        self.modelled = Averages(
            0.98, 3
        )  # a model round's expected accepted, its drafted tokens, extra passes
        self.ahead = Averages(0.98, 1)  # acceptance of the next token while all so far are accepted
        self.ahead.add(0.75)
        # How far the texts of late let one hope that the next suits the draft too, and what acceptance then.
        self.hope, self.good = 0.0, 0.8
        self.ends = Averages(0.9, 2)  # answers' tokens, and how many answers came to an end of their own
        self.ends.add(ANSWER, 1.0, weight=2.0)
        self.purse = 0.0  # seconds saved up for probing
        self.wanted = 0.0  # seconds that the next probe takes as far as is known, however many
        self.choices: Counter[str] = Counter()
        self.since_plain = 0
        self._passes: dict[tuple[int, ...], float] = {}  # seconds, by the widths asked for
        if learnt is not None:
            self._restore(learnt)

    def begin(self, mode: Mode = "auto", *, chosen: Chosen = "greedy") -> Control:
        """State of a new request."""
        return Control(self, mode, chosen)

    def answer(self) -> float:
        """Tokens that an answer goes on for if nothing cuts it; as if each token ended it alike."""
        return self.ends.sums[0] / max(self.ends.sums[1], 0.1)

    def took(self, rows: int, seconds: float) -> None:
        """One pass of the target, `rows` tokens of all requests in it; call it once a pass."""
        self.target.observe(rows, seconds)
        self._passes.clear()
        self.draft.fade()
        if not self.draft.observed:  # each time: a process' first passes are slow
            self.draft.level = 0.1 * self.target.seconds(1)
        self.since_plain = 0 if rows <= 2 else self.since_plain + 1

    def drafted(self, read: int, requests: int, steps: int, tokens: int, seconds: float) -> None:
        """A round's drafting by the model: passes, what they gave, for how many; the first read `read`."""
        if read <= 2 * requests:
            self.draft.observe(max(1, round(tokens / steps)), seconds / steps)
        else:  # the first pass' share of the time, as far as is known
            feed, rest = self.draft.seconds(read), (steps - 1) * self.draft.seconds(requests)
            self.draft.observe(read, seconds * feed / (feed + rest))

    def seconds(self, widths: Sequence[int]) -> float:
        """What a pass of the target is expected to take by each request's rows in it."""
        if len(widths) == 1 or not (self.even or self.padded):
            return self.target.seconds(min(sum(widths), KNOTS[-1]))
        key = tuple(sorted(widths))  # requests of one round ask for the same ones
        if key not in self._passes:
            self._passes[key] = self._uneven(key) if self.even else self._padded(key)
        return self._passes[key]

    def _padded(self, widths: tuple[int, ...]) -> float:
        rows = [len(each) * each[0] for each in padded_passes(widths)]
        return sum(self.target.seconds(min(each, KNOTS[-1])) for each in rows)

    def _uneven(self, widths: tuple[int, ...]) -> float:
        if any(leveled(widths)):
            return self.target.seconds(min(len(widths) * max(widths), KNOTS[-1]))
        took, done, left = 0.0, 0, len(widths)  # together as far as all go, then those that go further
        for width in widths:
            if width > done:
                took += self.target.seconds(min(left * (width - done), KNOTS[-1]))
                done = width
            left -= 1
        return took

    @property
    def learnt(self) -> Learnt:
        """All that is worth keeping for the next start."""
        return Learnt(
            target=CostsState.model_validate(self.target.dump()),
            draft=CostsState.model_validate(self.draft.dump()),
            calibrations={
                f"{source}/{chosen}": CalibrationState(tried=calibration.tried, accepted=calibration.accepted)
                for (source, chosen), calibration in self.calibrations.items()
            },
            certain=CalibrationState(tried=self.certain.tried, accepted=self.certain.accepted),
            hope=self.hope,
            good=self.good,
            averages={name: [average.weight, *average.sums] for name, average in self._averages().items()},
        )

    def _averages(self) -> dict[str, Averages]:
        return {
            "pace": self.paces[False],
            "copying": self.paces[True],
            "modelled": self.modelled,
            "ahead": self.ahead,
            "ends": self.ends,
        }

    def _restore(self, learnt: Learnt) -> None:
        for costs, state in ((self.target, learnt.target), (self.draft, learnt.draft)):
            costs.restore(state.level, state.shape, state.weight)
        for (source, chosen), calibration in self.calibrations.items():
            if kept := learnt.calibrations.get(f"{source}/{chosen}"):
                calibration.restore(kept.tried, kept.accepted)
        self.certain.restore(learnt.certain.tried, learnt.certain.accepted)
        self.hope, self.good = learnt.hope, learnt.good
        for name, average in self._averages().items():
            kept_average = learnt.averages.get(name)
            if kept_average and len(kept_average) == len(average.sums) + 1:
                average.weight, average.sums = kept_average[0], kept_average[1:]

    def report(self) -> dict[str, Any]:
        """What was learnt, for people: acceptance by source and confidence, milliseconds, choices so far."""
        return {
            "acceptance": [
                {
                    "source": source,
                    "chosen": chosen,
                    "confidence": [BOUNDS[bin_], BOUNDS[bin_ + 1]],
                    "tried": round(counts.tried[bin_]),
                    "accepted": round(counts.accepted[bin_]),
                    "rate": round(counts.accepted[bin_] / counts.tried[bin_], 3),
                }
                for (source, chosen), counts in self.calibrations.items()
                for bin_ in range(BINS)
                if counts.tried[bin_] > 0
            ],
            "target_ms": self.target.measured(),  # by rows
            "draft_ms": self.draft.measured(),  # by tokens fed at once; of 1: a drafted token
            "choices": dict(self.choices),  # rounds by source since the start
        }
