"""One request's drafting in one round: what is planned, when to stop, how much to keep.

A round is worth its tokens less the seconds it takes, each second priced at the tokens a second that are
reached anyway. Drafting goes on while, for some number j of further tokens,

    P * (a + a^2 + ... + a^j)  >=  price * (j c + v(rows + j) - v(rows))

with P the probability that all so far are accepted, a the acceptance expected of the next token, c the
seconds of one drafted token and v(rows) those of the target's pass (j > 1: v may step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from draftd.daemon.calibration import bin_of

Source = Literal["none", "suffix", "model", "chain"]

AHEAD = 8  # further tokens looked at before drafting stops
OPTION = 1.1  # drafting on may stop at the next doubt, which makes it worth more than a fixed length


class Plan:
    """One request's drafting in one round."""

    __slots__ = (
        *("_ahead", "_alone", "_rates", "_reach", "_rows", "_seen", "_steps"),
        *("found", "limit", "price", "reading", "source"),
    )

    def __init__(
        self,
        source: Source,
        limit: int,
        found: int = 0,
        price: float = 0.0,
        rates: tuple[list[float], list[float]] = ([], []),
        ahead: float = 1.0,
        steps: Sequence[float] = (0.0,),
        rows: list[float] | None = None,
        alone: list[float] | None = None,
        reading: int | None = None,
    ) -> None:
        self.source: Source = source
        self.limit = limit  # tokens at most, those of the suffix included
        self.found = found  # tokens of the suffix to use
        self.price = price  # tokens a second
        self.reading = reading  # tokens that the model reads at most before it drafts, the newest; None: all
        self._rates = rates  # expected acceptance by bin: the suffix's, the model's
        self._ahead = ahead
        self._steps = steps  # seconds of a drafted token, by how many requests share the model's pass
        self._rows = rows or [0.0] * (limit + 1)  # seconds of the pass by drafted rows in it
        self._alone = alone or self._rows  # the same while no other request drafts as far
        self._seen = 0
        self._reach = 1.0  # probability that all tokens so far are accepted

    def proceed(self, confidences: Sequence[float], going_on: int = 1) -> bool:
        """Should the model draft another token after these (the suffix's first, the newest last)?

        `going_on`: requests that still draft in the same passes, this one included.
        """
        count = len(confidences)
        if count != self._seen + 1:  # a chain's first call; else one a token
            self._seen, self._reach = 0, 1.0
            for index in range(count - 1):
                self._advance(confidences[index])
        if count:
            self._advance(confidences[-1])
        rows, ahead, gain, cost = self._rows if going_on > 1 else self._alone, self._ahead, 0.0, 0.0
        reach, step = OPTION * self._reach, self._steps[min(going_on, len(self._steps)) - 1]
        for more in range(1, min(AHEAD, self.limit - count) + 1):
            reach *= ahead
            gain += reach
            cost += step
            if gain >= self.price * (cost + rows[count + more] - rows[count]):
                return True
        return False

    def _advance(self, confidence: float) -> None:
        self._reach *= self._rates[self._seen >= self.found][bin_of(confidence)] if self.price else 1.0
        self._seen += 1

    def keep(self, confidences: Sequence[float], rows: Sequence[float] | None = None) -> int:
        """How many of the drafted tokens the target should check; `rows`: what its pass will take by them."""
        if not self.price:
            return min(len(confidences), self.limit)
        most = confidences[: self.limit]
        return best_cut(most, self._rates, self.found, self.price, rows or self._alone)[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a plan."""

    confidences: Sequence[float]  # of all tokens drafted, the suffix's that were used first; trimmed ones too
    agreed: int  # leading ones of these that are the target's, known for as many as `emitted`
    emitted: int  # tokens of this request the pass gave: accepted and one more, before any stop cuts them
    found_agreed: int = 0  # leading tokens that the suffix found which are the target's, used or not
    seconds: float = 0.0  # the whole round; nan: it was not one like others
    certainty: float | None = None  # of the target, in its choice of the round's first token
    kept: int = 0  # leading tokens that the target checked


def best_cut(
    confidences: Sequence[float],
    rates: tuple[list[float], list[float]],
    found: int,
    price: float,
    rows: Sequence[float],
) -> tuple[int, float, float, float]:
    """The number of leading tokens worth most; with their worth, expected tokens and P(all accepted)."""
    suffix, model = rates
    best, worth, tokens, last = 0, 0.0, 0.0, 1.0
    reach, gain, base = 1.0, 0.0, rows[0]
    for index, confidence in enumerate(confidences):
        reach *= (suffix if index < found else model)[bin_of(confidence)]
        gain += reach
        value = gain - price * (rows[index + 1] - base)
        if value >= worth:
            best, worth, tokens, last = index + 1, value, gain, reach
    return best, worth, tokens, last


def expected_tokens(confidences: Sequence[float], rates: list[float]) -> float:
    """Tokens expected to be accepted."""
    reach, tokens = 1.0, 0.0
    for confidence in confidences:
        reach *= rates[bin_of(confidence)]
        tokens += reach
    return tokens


@dataclass(frozen=True, slots=True)
class Expected:
    """What a round's drafts give on the average, by how often tokens of such confidence are accepted."""

    tokens: float  # accepted, of those that the target checked
    gain: float  # of them the model's
    reached: float  # of the model's tokens, checked or not, those before which all are accepted
    ahead: float  # of these the accepted ones


def expect(
    drafted: Sequence[float], found: int, kept: int, rates: tuple[list[float], list[float]]
) -> Expected:
    """Of tokens with these confidences, the first `found` of them the suffix's; the target checked `kept`."""
    suffix, model = rates
    reach, tokens, gain, reached, ahead = 1.0, 0.0, 0.0, 0.0, 0.0
    for index, confidence in enumerate(drafted):
        rate = (suffix if index < found else model)[bin_of(confidence)]
        if index >= found:
            reached += reach
            ahead += reach * rate
        reach *= rate
        if index < kept:
            tokens += reach
            gain += reach if index >= found else 0.0
    return Expected(tokens, gain, reached, ahead)


def profile(reach: float, ahead: float, most: int, price: float, step: float, rows: list[float]) -> float:
    """Worth of the best fixed number of tokens if each is accepted with the same probability."""
    best, gain, cost = -1e9, 0.0, 0.0
    for count in range(1, most + 1):
        reach *= ahead
        gain += reach
        cost += step
        value = gain - price * (cost + rows[count] - rows[0])
        if value > best:
            best = value
        elif count > AHEAD:
            break
    return best
