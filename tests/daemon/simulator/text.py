"""Texts of known acceptance, position by position."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp
from random import Random

PROMPT, ANSWER = 60, 256  # tokens of a request
CERTAIN = 0.5  # log-odds by which the target is surer of a token than the draft is right
OFFER = 32  # tokens the suffix offers at most


@dataclass(frozen=True)
class Kind:
    """A kind of text: how often the draft's first choice is right, and how much of it is copied."""

    rate: float
    copied: float = 0.02  # share of positions that lie in a copy of something earlier
    span: int = 12  # mean length of such a copy
    overconfident: float = 0.3  # log-odds by which the draft's confidence exceeds its acceptance


KINDS = {
    "prose": Kind(0.62),
    "translation": Kind(0.67),
    "stem": Kind(0.82),
    "code": Kind(0.91),
    "math": Kind(0.97),
    "edit": Kind(0.90, copied=0.8, span=40),
    "repeated": Kind(0.80, copied=1.0, span=400),
    "unpredictable": Kind(0.10),
    "deceptive": Kind(0.15, overconfident=2.5),
}


@dataclass
class Text:
    """One answer, position by position."""

    confidence: list[float] = field(default_factory=list)  # of the draft's choice, all before it being right
    certainty: list[float] = field(default_factory=list)  # of the target in its own
    agrees: list[bool] = field(default_factory=list)
    astray: list[float] = field(default_factory=list)  # of its choice once it is on a wrong path
    offers: list[tuple[list[float], int]] = field(default_factory=list)  # the suffix's, and how much is right


def write(kind: Kind, length: int, random: Random) -> Text:
    """A text of one kind; whether the draft is right follows a sticky difficulty, as in real text."""
    text = Text()
    centre = _centre(kind.rate)
    sticky, rest = random.gauss(0, 1), 0
    aside = Random(sticky)
    ends: list[int] = []
    copying = random.random() < kind.copied
    total = length + OFFER + 1
    for position in range(total):
        if rest == 0:
            copying = random.random() < kind.copied
            mean = kind.span if copying else max(1.0, kind.span * (1 - kind.copied) / kind.copied)
            rest = max(1, round(random.expovariate(1 / min(mean, 400))))
            if position and ends and ends[-1] and copying:
                copying = False  # two copies in a row are one
        rest -= 1
        ends.append(rest + 1 if copying else 0)
        sticky = 0.4 * sticky + 0.92 * random.gauss(0, 1)
        odds = centre + 2.5 * sticky + (2.0 if copying else 0.0)
        text.agrees.append(random.random() < _squash(odds))
        text.certainty.append(_squash(odds + CERTAIN + aside.gauss(0, 1.0)))
        text.confidence.append(_squash(odds + kind.overconfident + random.gauss(0, 0.5)))
        text.astray.append(_squash(centre - 0.5 + 2.5 * random.gauss(0, 1) + kind.overconfident))
    for left in ends[:length]:
        if left:
            # the suffix can't know where the copy ends, so what it offers goes on
            count = min(OFFER, left + round(random.expovariate(1 / 8)))
            text.offers.append(([random.uniform(0.75, 0.99) for _ in range(count)], min(left, count)))
        elif random.random() < 0.3:
            count = random.randint(1, 4)
            right = 0
            while right < count and random.random() < 0.2:
                right += 1
            text.offers.append(([random.uniform(0.2, 0.6) for _ in range(count)], right))
        else:
            text.offers.append(([], 0))
    return text


def _squash(odds: float) -> float:
    return 1 / (1 + exp(-max(-30.0, min(30.0, odds))))


def _centre(rate: float) -> float:
    """The mean log-odds at which a spread of 2.5 gives this mean rate."""
    low, high = -15.0, 15.0
    nodes = [-2.5 + 0.25 * step for step in range(21)]
    weights = [exp(-node * node / 2) for node in nodes]
    for _ in range(40):
        middle = (low + high) / 2
        mean = sum(w * _squash(middle + 2.5 * node) for node, w in zip(nodes, weights, strict=True))
        low, high = (middle, high) if mean / sum(weights) < rate else (low, middle)
    return low


def texts(regime: str, requests: int, seed: int = 1, length: int = ANSWER) -> list[Text]:
    """Answers of a regime: a kind's name, "a>b" (changes in the middle) or "a|b" (takes turns)."""
    random = Random(f"{regime}{seed}")
    answers = []
    for index in range(requests):
        turn = regime.split("|")
        halves = turn[index % len(turn)].split(">")
        parts = [write(KINDS[name], length // len(halves), random) for name in halves]
        whole = Text()
        for part in parts:
            keep = length // len(halves) if part is not parts[-1] else None
            whole.confidence += part.confidence[:keep]
            whole.certainty += part.certainty[:keep]
            whole.agrees += part.agrees[:keep]
            whole.astray += part.astray[:keep]
            whole.offers += part.offers
        answers.append(whole)
    return answers
