"""What acceptance a request may expect of the draft's model, and the verdict on it that the next starts from.

A draft's first pass over a prompt takes as long as several plain rounds, which a short answer that suits it
badly would never win back. So the target's own tokens are looked at first: how sure it was of them says how
predictable the text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftd.daemon.averages import Averages
from draftd.daemon.calibration import bin_of

if TYPE_CHECKING:
    from draftd.daemon.controller import Controller

TRUST = 3.0  # tokens' worth of what earlier requests say of a new one
DOUBT = 0.6  # acceptance in texts that suit a draft least: if even that pays, it begins at once
WAIT = 4  # else after so many tokens of the target alone, which say how predictable the text is
EASY = 0.75  # hope that makes signs unnecessary
TYPICAL, SIGNS = 0.65, 4.0  # acceptance of an unknown text, and how many tokens' signs that is worth
JUDGED = 12  # rounds of model drafting, or passes saved, that make a request one where it pays


class Foresight:
    """One request's expectation and verdict."""

    def __init__(self, controller: Controller, hope: float) -> None:
        """`hope`: 0 to 1, how well the texts of late suited the draft."""
        self.controller = controller
        self._hope = hope
        self._ahead = Averages(0.9, 1)  # acceptance of the next token while all so far are accepted
        self._ahead.add((1.0 - hope) * controller.ahead.mean(0) + hope * controller.good, weight=TRUST)
        self._judged = False

    def acceptance(self, signs: Sequence[float] | None) -> float:
        """What to expect; `signs`: how sure the target was of the first tokens; None: the model drafts."""
        if signs is None:
            return min(0.995, self._ahead.mean(0))
        certain = self.controller.certain
        rates = [certain.rate(bin_of(sign)) for sign in signs]
        base = (1.0 - self._hope) * TYPICAL + self._hope * self.controller.good
        expected = (SIGNS * base + sum(rates)) / (SIGNS + len(rates))
        self._ahead = Averages(0.9, 1)
        self._ahead.add(expected, weight=TRUST)
        return min(expected, 0.995 if len(signs) >= WAIT or self._hope > EASY else DOUBT)

    def learn(self, acceptance: float, weight: float) -> None:
        """Take in what a round's tokens of the model say."""
        for averages in (self._ahead, self.controller.ahead):
            averages.add(acceptance, weight=weight)

    def judge(self, pays: bool, rounds: int, lost: float, acceptance: float) -> None:
        """Settle, once a request, whether the model's drafting pays; `lost`: plain passes in its `rounds`."""
        shared = self.controller
        if self._judged:
            return
        if not pays:
            shared.hope *= 0.5
            shared.purse -= max(0.0, lost) * shared.target.seconds(1)
            self._judged = True
        elif rounds >= JUDGED or lost <= -JUDGED:
            shared.hope = 1.0
            shared.purse = max(0.0, shared.purse)
            shared.good += 0.3 * (acceptance - shared.good)
            self._judged = True
