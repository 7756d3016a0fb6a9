"""Requests under a controller, on a machine of known costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from random import Random

from draftd.daemon.control import Control
from draftd.daemon.controller import Controller
from draftd.daemon.plan import Outcome
from tests.daemon.simulator.machines import Machine
from tests.daemon.simulator.text import ANSWER, PROMPT, Text


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
        if made:
            controller.drafted(read, 1, made, made, told)
        sign = text.certainty[at]
        signs.append(sign)
        control.learn(
            Outcome(drafted.confidences, agreed, emitted, min(right, emitted), told + passed, sign, kept)
        )
        at += emitted
    control.ended(stopped=True)
    return spent
