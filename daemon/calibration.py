"""How often a token drafted with a given confidence turns out to be the target's."""

from __future__ import annotations

from bisect import bisect_right
from math import exp, log
from typing import Literal

EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
BINS = len(EDGES) + 1
BOUNDS = (0.0, *EDGES, 1.0)
MEMORY = 400.0  # tokens a bin remembers: counts are halved there
PRIOR = 4.0  # tokens' worth of the belief that acceptance is about the confidence itself
SPREAD = 1.0  # variance, in log-odds, of one text's acceptance around that of all texts


# How the target's token comes about, which decides how often a draft is accepted: counted apart.
Chosen = Literal["greedy", "sampled", "rejection"]
CHOSEN: tuple[Chosen, ...] = ("greedy", "sampled", "rejection")


def bin_of(confidence: float) -> int:
    """The bin of a confidence; what is no number counts as none."""
    return bisect_right(EDGES, confidence) if confidence == confidence else 0


class Calibration:
    """Counts by bin over all requests: the prior of each request's own view."""

    def __init__(self) -> None:
        self.tried = [0.0] * BINS
        self.accepted = [0.0] * BINS
        self.odds = [self._odds(bin_) for bin_ in range(BINS)]  # logarithms, by bin

    def learn(self, bin_: int, accepted: bool) -> None:
        self.tried[bin_] += 1.0
        self.accepted[bin_] += accepted
        if self.tried[bin_] > MEMORY:
            self.tried[bin_] /= 2.0
            self.accepted[bin_] /= 2.0
        self.odds[bin_] = self._odds(bin_)

    def rate(self, bin_: int) -> float:
        """Expected acceptance in a bin, between 0 and 1 exclusive."""
        centre = (BOUNDS[bin_] + BOUNDS[bin_ + 1]) / 2.0
        return (self.accepted[bin_] + PRIOR * centre) / (self.tried[bin_] + PRIOR)

    def _odds(self, bin_: int) -> float:
        rate = self.rate(bin_)
        return log(rate / (1.0 - rate))

    def restore(self, tried: list[float], accepted: list[float]) -> None:
        self.tried = list(tried)
        self.accepted = [min(one, all_) for one, all_ in zip(accepted, tried, strict=True)]
        self.odds = [self._odds(bin_) for bin_ in range(BINS)]


class Leaning:
    """One request's deviation from the calibration: a shift of all log-odds, learnt online (Newton)."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.shift = 0.0
        self._information = 1.0 / SPREAD

    def rates(self) -> list[float]:
        """Expected acceptance for this request, by bin."""
        shift = self.shift
        return [1.0 / (1.0 + exp(-shift - odds)) for odds in self.calibration.odds]

    def learn(self, bin_: int, accepted: bool) -> None:
        expected = 1.0 / (1.0 + exp(-self.shift - self.calibration.odds[bin_]))
        # Forgetting keeps about forty uncertain tokens, so that a change of text shows.
        self._information = max(1.0 / SPREAD, 0.98 * self._information) + expected * (1.0 - expected)
        shift = self.shift + (accepted - expected) / self._information
        self.shift = max(-3.0, min(3.0, 0.998 * shift))
        self.calibration.learn(bin_, accepted)
