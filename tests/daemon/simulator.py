"""A simulated daemon: texts of known acceptance, passes of known cost, all fixed policies to compare with.

Times are scored without noise; only what the controller is told of them is noisy, so a difference of scores
is one of decisions. `python -m tests.daemon.simulator` prints the table of all regimes.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from random import Random
from typing import Any

from draftd.daemon.control import Control
from draftd.daemon.controller import Controller
from draftd.daemon.plan import Outcome

PROMPT, ANSWER = 60, 256  # tokens of a request
CERTAIN = 0.5  # log-odds by which the target is surer of a token than the draft is right
OFFER = 32  # tokens the suffix offers at most

# ---- machines: milliseconds by rows, from measurements on two cores


@dataclass(frozen=True)
class Machine:
    """What passes of the target and of the draft take, in seconds."""

    target: dict[int, float]
    draft: dict[int, float]

    def tables(self, rows: int = 2 * OFFER, prompt: int = 1024) -> tuple[list[float], list[float]]:
        return _by_rows(self.target, rows), _by_rows(self.draft, prompt)


def _by_rows(points: dict[int, float], most: int) -> list[float]:
    widths = sorted(points)
    table = [0.0]
    for width in range(1, most + 1):
        left = min(max(bisect_right(widths, width) - 1, 0), len(widths) - 2)
        low, high = widths[left], widths[left + 1]
        slope = (points[high] - points[low]) / (high - low)
        table.append((points[low] + slope * (width - low)) / 1000)
    return table


TUNED = {1: 15.5, 5: 34.0, 8: 40.0, 16: 59.0, 32: 119.0}
SHIPPED = {1: 40.0, 5: 76.0, 8: 91.0, 16: 134.0, 32: 269.0}
SMALL = {1: 9.0, 5: 20.0, 8: 29.0, 16: 47.0, 32: 125.0}
FLAT = {1: 286.0, 5: 290.0, 8: 291.0, 16: 292.0, 20: 388.0, 32: 388.0, 48: 480.0}
STEEP = {1: 80.0, 5: 128.0, 8: 156.0, 16: 223.0, 32: 313.0}
STEPPED = {1: 95.0, 2: 138.0, 3: 152.0, 4: 152.0, 5: 190.0, 8: 270.0, 16: 335.0, 32: 578.0}
HEAVY = {1: 31.0, 5: 60.0, 57: 400.0}
TINY = {1: 38.0, 5: 40.0, 8: 41.0, 16: 48.0, 32: 51.0}
MACHINES = {
    "transformers, tuned draft": Machine(FLAT, TUNED),
    "transformers, shipped draft": Machine(FLAT, SHIPPED),
    "llama.cpp, tuned draft": Machine(STEEP, TUNED),
    "llama.cpp, shipped draft": Machine(STEEP, SHIPPED),
    "llama.cpp without AMX, tuned draft": Machine(STEPPED, HEAVY),
    "135M, 135M draft": Machine(TINY, SMALL),
}

# ---- texts


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


# ---- running


@dataclass
class Drafted:
    confidences: list[float]
    agreed: int


def draft(
    text: Text, at: int, used: int, limit: int, proceed: Callable[[list[float]], bool] | None
) -> Drafted:
    """What a plan drafts at a position: `used` tokens of the suffix, then the model's."""
    offer, right = text.offers[at]
    confidences = offer[:used]
    agreed = min(used, right)
    while proceed is not None and len(confidences) < limit:
        count = len(confidences)
        if agreed == count:
            confidences.append(text.confidence[at + count])
            agreed += text.agrees[at + count]
        else:
            confidences.append(text.astray[at + count])
        if not proceed(confidences):
            break
    return Drafted(confidences, agreed)


@dataclass
class Weather:
    """Noise of a machine: each pass, a slow drift, and now and then a hiccup."""

    random: Random
    noise: float = 0.15
    hiccups: float = 0.0
    drift: float = 0.0

    def __call__(self, seconds: float) -> float:
        self.drift = 0.995 * self.drift + 0.015 * self.random.gauss(0, 1)
        seconds *= exp(self.noise * self.random.gauss(0, 1) - self.noise**2 / 2 + self.drift)
        return seconds * (10.0 if self.random.random() < self.hiccups else 1.0)


def run(
    controller: Controller, machine: Machine, answers: Sequence[Text], weather: Weather, length: int = ANSWER
) -> list[float]:
    """True seconds of each request under the controller."""
    spent = []
    tables = machine.tables()
    for text in answers:
        spent.append(run_one(controller, controller.begin(), tables, text, weather, length))
    return spent


def run_one(
    controller: Controller,
    control: Control,
    tables: tuple[list[float], list[float]],
    text: Text,
    weather: Weather,
    length: int = ANSWER,
    limit: int = 0,
    prompt: int = PROMPT,
) -> float:
    """`limit`: tokens that the request allows, by default as many as the answer has.

    A draft that reads only the end of a prompt drafts as well as one that reads all of it.
    """
    target, drafting = tables
    at, unseen, spent = 0, prompt, 0.0
    signs = text.certainty[:1]
    while at < length:
        offer, right = text.offers[at]
        offered = offer if control.looks_up else ()
        plan = control.plan(max(length, limit) - at, offered, signs=signs, unseen=unseen)
        models = plan.source in ("model", "chain")
        drafted = draft(text, at, plan.found, plan.limit, plan.proceed if models else None)
        kept = plan.keep(drafted.confidences)
        accepted = min(kept, drafted.agreed)
        emitted = accepted + 1
        made = len(drafted.confidences) - plan.found
        read = min(unseen + plan.found, plan.reading or unseen + plan.found)
        cost = drafting[read] + (made - 1) * drafting[1] if made else 0.0
        agreed = min(drafted.agreed, emitted)
        unseen = emitted - min(agreed, len(drafted.confidences) - 1) if made else unseen + emitted
        spent += cost + target[1 + kept]
        told, passed = weather(cost) if made else 0.0, weather(target[1 + kept])
        controller.took(1 + kept, passed)
        sign = text.certainty[at]
        signs.append(sign)
        control.learn(
            Outcome(drafted.confidences, agreed, emitted, min(right, emitted), told, told + passed, sign)
        )
        at += emitted
    control.ended(stopped=True)
    return spent


@dataclass(frozen=True)
class Policy:
    """A fixed way to draft: always the same source and length, down to one confidence."""

    source: str
    length: int = 0
    floor: float = 0.0
    low: bool = False  # is the token that fell below the floor checked too?


def run_fixed(policy: Policy, machine: Machine, answers: Sequence[Text], length: int = ANSWER) -> list[float]:
    """True seconds of each request under a fixed policy."""
    target, drafting = machine.tables()
    spent = []
    models, looks = policy.source in ("model", "chain"), policy.source in ("suffix", "chain")
    most, floor, low = policy.length, policy.floor, policy.low
    for text in answers:
        at, unseen, total = 0, PROMPT, 0.0
        confidence, agrees, astray, offers = text.confidence, text.agrees, text.astray, text.offers
        while at < length:
            limit = min(most, length - at - 1)
            used = agreed = 0
            if looks:
                offer, right = offers[at]
                for value in offer[:limit]:
                    if value < floor:
                        break
                    used += 1
                agreed = min(used, right)
            count = kept = used
            made = 0
            while models and count < limit:
                on = agreed == count
                value = confidence[at + count] if on else astray[at + count]
                made += 1
                count += 1
                if value < floor:
                    kept += low
                    agreed += on and low and agrees[at + count - 1]
                    break
                kept += 1
                agreed += on and agrees[at + count - 1]
            total += target[1 + kept]
            emitted = agreed + 1
            if made:
                total += drafting[unseen + used] + (made - 1) * drafting[1]
                unseen = max(1, emitted - min(agreed, count - 1))
            else:
                unseen += emitted
            at += emitted
        spent.append(total)
    return spent


LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
FLOORS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def policies(lengths: Sequence[int] = LENGTHS, floors: Sequence[float] = FLOORS) -> list[Policy]:
    drafting = [
        Policy(source, length, floor, low)
        for source in ("suffix", "model", "chain")
        for length in lengths
        for floor in floors
        for low in ((False, True) if source != "suffix" and floor else (False,))
    ]
    return [Policy("none"), *drafting]


def best_fixed(
    machine: Machine, answers: Sequence[Text], among: Sequence[Policy], skip: int = 0
) -> tuple[float, Policy]:
    """The fixed policy of least time over all but the first requests."""
    return min(
        ((sum(run_fixed(policy, machine, answers)[skip:]), policy) for policy in among),
        key=lambda pair: pair[0],
    )


def plain(machine: Machine, requests: int, length: int = ANSWER) -> float:
    return requests * length * machine.tables()[0][1]


REGIMES = (
    *KINDS,
    "code>prose",
    "unpredictable>math",
    "code|prose",
    "unpredictable|code",
    "prose|prose|unpredictable|math|edit",
)


def main() -> None:
    requests, skip = 8, 2
    among = policies()
    print(
        f"{requests} requests of {ANSWER} tokens from a cold start; all but `first`: without the first {skip}"
    )
    print(f"{'machine':34} {'regime':36} speed-up best-fixed share first  best fixed policy")
    for name, machine in MACHINES.items():
        for regime in REGIMES:
            answers = texts(regime, requests)
            best, policy = best_fixed(machine, answers, among, skip)
            spent = run(Controller(), machine, answers, Weather(Random(7)))
            alone, mine = plain(machine, 1), sum(spent[skip:])
            rest = alone * (requests - skip)
            print(
                f"{name:34} {regime:36} {rest / mine:8.2f} {rest / best:10.2f} {best / mine:5.2f}"
                f" {alone / spent[0]:5.2f}  {policy.source} {policy.length} >= {policy.floor}"
                f"{' and the next' if policy.low else ''}",
                flush=True,
            )
    print("microseconds a call:", ", ".join(f"{name} {value:.1f}" for name, value in speed().items()))


def speed() -> dict[str, float]:
    """Mean microseconds of the controller's calls over twenty requests of code."""
    spent: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any) -> Any:
            began = time.process_time()
            result = call(*args)
            spent[name] += time.process_time() - began
            calls[name] += 1
            return result

        return measured

    class TimedControl(Control):
        learn = timed("learn", Control.learn)
        plan = timed("plan", Control.plan)

    controller, machine = Controller(), MACHINES["llama.cpp, tuned draft"]
    controller.took = timed("took", controller.took)  # type: ignore[method-assign]
    for text in texts("code", 20):
        control = TimedControl(controller, "auto", chosen="greedy")
        run_one(controller, control, machine.tables(), text, Weather(Random(1)))
    return {name: 1e6 * spent[name] / calls[name] for name in spent}


if __name__ == "__main__":
    main()
