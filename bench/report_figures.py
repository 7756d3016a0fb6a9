"""What a side-by-side run measured: each quantity by contender and question."""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

SAMPLES = 2000  # of the bootstrap
BEHIND = 0.95  # a share of the best fixed policy that the page names one by one
SPEED, GAIN = "tokens a second after the first", "over draftd's target alone"
WHOLE, WHOLE_GAIN = "tokens a second, whole answer", "whole answer over draftd's target alone"

Answer = dict[str, Any]
Figures = dict[str, dict[str, float]]  # by contender, then by question; what nobody knows is left out


def quantities(document: dict[str, Any], counted: bool) -> dict[str, Figures]:
    """Every quantity of the table; `counted`: energy too."""
    speeds, whole = both_speeds(document)
    found = {
        SPEED: speeds,
        GAIN: {name: over(speeds, name, "draftd off") for name in speeds},
        WHOLE: whole,
        WHOLE_GAIN: {name: over(whole, name, "draftd off") for name in whole},
        "per pass": by_question(document, per_pass),
        "first ms": by_question(document, lambda answer: 1000 * float(answer["first_seconds"])),
        "MiB": memory(document),
    }
    return found | {"J a token": by_question(document, joules_a_token)} if counted else found


def answers(document: dict[str, Any], name: str) -> dict[str, list[Answer]]:
    """One contender's answers to each question, one a turn."""
    grouped: dict[str, list[Answer]] = {}
    for result in document["results"]:
        if result["contender"] == name:
            grouped.setdefault(result["question_id"], []).append(result)
    return grouped


def speed(answer: Answer) -> float:
    """Tokens a second after the first piece, which may hold several; nan where nothing followed it."""
    seconds = answer["seconds"] - answer["first_seconds"]
    tokens = answer["tokens"] - answer.get("first_tokens", 1)
    return float(tokens / seconds) if tokens > 0 and seconds > 0 else math.nan


def whole_speed(answer: Answer) -> float:
    """Tokens a second from the request to the end; nan where there was none."""
    return float(answer["tokens"] / answer["seconds"]) if answer["tokens"] else math.nan


def both_speeds(document: dict[str, Any]) -> tuple[Figures, Figures]:
    """Speeds after the first piece and of whole answers."""
    return comparable(by_question(document)), comparable(by_question(document, whole_speed))


def comparable(figures: Figures) -> Figures:
    """Only the questions of which each contender's figure is known, of those that have any."""
    known = [set(each) for each in figures.values() if each]
    shared = set.intersection(*known) if known else set()
    return {name: picked(each, shared) for name, each in figures.items()}


def per_pass(answer: Answer) -> float:
    """Tokens a pass of the target: by its rounds, or by what was accepted; nan where neither is known."""
    rounds = answer.get("rounds", answer["tokens"] - answer.get("accepted", answer["tokens"]))
    return float(answer["tokens"] / rounds) if rounds > 0 else math.nan


def joules_a_token(answer: Answer) -> float:
    """Of the whole processor package; nan where the counter ran over."""
    joules = answer.get("joules", 0.0)
    return float(joules / answer["tokens"]) if joules > 0 and answer["tokens"] else math.nan


def by_question(document: dict[str, Any], of: Callable[[Answer], float] = speed) -> Figures:
    """A quantity's median over the turns by contender and question, where it is known."""
    found: Figures = {}
    for name in document["memory_bytes"]:
        found[name] = {}
        for question, turns in answers(document, name).items():
            if known := [value for each in turns if not math.isnan(value := of(each))]:
                found[name][question] = statistics.median(known)
    return found


def memory(document: dict[str, Any]) -> Figures:
    """MiB after each answer; earlier programs of this folder read them once, at the end."""
    end = document["memory_bytes"]
    return by_question(document, lambda answer: answer.get("memory_bytes", end[answer["contender"]]) / 2**20)


def over(figures: Figures, name: str, other: str) -> dict[str, float]:
    """One contender's figure over another's, by question."""
    base = figures.get(other, {})
    return {question: value / base[question] for question, value in figures[name].items() if question in base}


def picked(values: dict[str, float], questions: set[str]) -> dict[str, float]:
    return {question: value for question, value in values.items() if question in questions}


def bootstrap(values: Sequence[float], of: Callable[[list[float]], float]) -> tuple[float, float]:
    """The middle 95 % of a statistic over resampled values (Efron 1979, percentile method)."""
    dice = random.Random(1)
    found = sorted(of(dice.choices(values, k=len(values))) for _ in range(SAMPLES))
    return found[int(0.025 * SAMPLES)], found[int(0.975 * SAMPLES)]


def best_fixed(speeds: Figures) -> dict[str, float]:
    """By question the speed of draftd's fastest fixed policy, to draft nothing being one of them.

    The best of several noisy figures is flattered by noise, so the controller's share of it looks too low.
    """
    fixed = [each for name, each in speeds.items() if re.fullmatch(r"draftd (off|\w+:\d+)", name)]
    shared = set.intersection(*(set(each) for each in fixed)) if len(fixed) > 1 else set()
    return {question: max(each[question] for each in fixed) for question in sorted(shared)}
