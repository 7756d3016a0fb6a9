"""Running means that forget."""

from __future__ import annotations


class Averages:
    """Means of a few figures, recent ones counting most."""

    __slots__ = ("fade", "sums", "weight")

    def __init__(self, fade: float, figures: int) -> None:
        self.fade = fade
        self.weight = 0.0
        self.sums = [0.0] * figures

    def add(self, *figures: float, weight: float = 1.0) -> None:
        self.weight = self.weight * self.fade + weight
        for index, figure in enumerate(figures):
            self.sums[index] = self.sums[index] * self.fade + weight * figure

    def over(self, prior: Averages, most: float) -> list[float]:
        """The means, with at most so much weight of a prior's."""
        if not self.weight and not prior.weight:
            return list(self.sums)
        share = min(most, prior.weight) / prior.weight if prior.weight else 0.0
        total = self.weight + share * prior.weight
        return [(own + share * other) / total for own, other in zip(self.sums, prior.sums, strict=True)]

    def mean(self, index: int) -> float:
        """One of the means; 0 before anything was added."""
        return self.sums[index] / self.weight if self.weight else 0.0
