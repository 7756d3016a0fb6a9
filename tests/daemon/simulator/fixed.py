"""All fixed ways to draft, for the controller to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.daemon.simulator.machines import Machine
from tests.daemon.simulator.text import ANSWER, PROMPT, Text


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
