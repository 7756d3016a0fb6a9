"""The report's section of one side-by-side run, its plot, and one table of all runs."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bars import bars
from documents import without_folders

from draftd.daemon.bench_table import geometric_mean

OWN = {  # a contender that drafts -> the same library without
    "hf generate": "hf generate plain",
    "llama server": "llama server plain",
    "llama python": "llama python plain",
    "openvino genai int4": "openvino genai int4 plain",
    "openvino genai GGUF": "openvino genai GGUF plain",
    "draftd": "draftd off",
}
BEST = "draftd best fixed"
OTHER_DRAWS = "other draws"
SAMPLES = 2000  # of the bootstrap
SPEED, GAIN = "tokens a second after the first", "over draftd's target alone"
WHOLE, WHOLE_GAIN = "tokens a second, whole answer", "whole answer over draftd's target alone"
FORMS = {SPEED: "{:.2f}", GAIN: "{:.2f}x", WHOLE: "{:.2f}", WHOLE_GAIN: "{:.2f}x"}
FORMS |= {"per pass": "{:.2f}", "first ms": "{:.0f}", "MiB": "{:.0f}"}
ENERGY = {"J a token": "{:.2f}"}

Answer = dict[str, Any]
Figures = dict[str, dict[str, float]]  # by contender, then by question; what nobody knows is left out


def section(document: dict[str, Any]) -> str:
    """The command, a line a contender with geometric means and intervals, then each quantity by category."""
    counted = any("joules" in result for result in document["results"])
    forms = FORMS | ENERGY if counted else FORMS
    found = quantities(document, counted)
    heads = ["contender", *forms, "over its own plain speed", "same"]
    lines = [
        f"### Side by side: {asked_of(document)}",
        "",
        f"    {without_folders(document['command'])}",
        "",
        caption(document, counted),
        "",
        *table(heads, [line(document, found, name, forms) for name in document["memory_bytes"]]),
    ]
    for speeds, gains in ((found[SPEED], found[GAIN]), (found[WHOLE], found[WHOLE_GAIN])):
        if hindsight := best_fixed(speeds):
            speeds[BEST] = hindsight
            gains[BEST] = over(speeds, BEST, "draftd off")
    if BEST in found[WHOLE]:
        lines.append(row([f"*{BEST}*", *[mean(found[each].get(BEST, {}), forms[each]) for each in forms]]))
        lines[-1] += " | |"
        if "draftd auto" in found[WHOLE]:
            after, whole = (
                mean(over(found[each], "draftd auto", BEST), "{:.2f}x") for each in (SPEED, WHOLE)
            )
            lines.append(
                f"\nThe controller over the best fixed policy: {after} after the first, {whole} whole."
            )
    for label, reason in document["missing"].items():
        lines.append(f"\n{label}: not measured ({without_folders(reason)}).")
    categories = by_category(document)
    lines += ["", "<details><summary>Each of these by category</summary>"]
    for title, form in forms.items():
        rows = [
            [
                name,
                *[mean(picked(each, questions), form, interval=False) for questions in categories.values()],
            ]
            for name, each in found[title].items()
            if each
        ]
        lines += ["", f"By category: {title}.", "", *table(["contender", *categories], rows)]
    return "\n".join([*lines, "", "</details>"])


def asked_of(document: dict[str, Any]) -> str:
    """What a run was of: pair, backend, sampling."""
    temperature = document["sampling"]["temperature"]
    mode = f"temperature {temperature}" if temperature else "greedy"
    return f"{document['pair']}, draftd's target in {document['backend']}, {mode}"


def summary(documents: Sequence[dict[str, Any]]) -> str:
    """All runs in one table, the first of each kind: speeds after the first token, and over draftd's off."""
    runs: dict[str, dict[str, Any]] = {}
    for document in documents:
        runs.setdefault(asked_of(document).replace("draftd's target in ", ""), document)
    speeds = {run: both_speeds(document)[0] for run, document in runs.items()}
    rows = []
    for name in dict.fromkeys(name for each in speeds.values() for name in each):
        cells = [name]
        for run, document in runs.items():
            if found := speeds[run].get(name):
                gain = mean(over(speeds[run], name, "draftd off"), "{:.2f}x", interval=False)
                cells.append(f"{mean(found, '{:.1f}', interval=False)}, {gain}")
            else:
                cells.append("failed" if name in document["missing"] else "not asked")
        rows.append(cells)
    return "\n".join(
        [
            "### Side by side, all runs",
            "",
            "Tokens a second after the first, and how that stands to draftd with its target alone; geometric "
            "means over the prompts of a run. Compare down a column only. Of runs that asked the same, the "
            "first.",
            "",
            *table(["contender", *runs], rows),
        ]
    )


def line(document: dict[str, Any], found: dict[str, Figures], name: str, forms: dict[str, str]) -> list[str]:
    """One contender's cells."""
    own = plain_of(name)
    against = over(found[SPEED], name, own) if own != name else {}
    figures = [mean(found[title][name], form) for title, form in forms.items()]
    return [name, *figures, mean(against, "{:.2f}x"), same(document, name, own)]


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
    if "rounds" not in answer and "accepted" not in answer:
        return math.nan
    rounds = answer.get("rounds") or answer["tokens"] - answer["accepted"]
    return float(answer["tokens"] / rounds) if rounds > 0 else math.nan


def joules_a_token(answer: Answer) -> float:
    """Of the whole processor; nan where the counter ran over."""
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


def plain_of(name: str) -> str:
    """The contender that is this one's library without drafting; none is the empty name."""
    return next((plain for begin, plain in OWN.items() if name.startswith(begin)), "")


def over(figures: Figures, name: str, other: str) -> dict[str, float]:
    """One contender's figure over another's, by question."""
    base = figures.get(other, {})
    return {question: value / base[question] for question, value in figures[name].items() if question in base}


def mean(values: dict[str, float], form: str, interval: bool = True) -> str:
    """The geometric mean over the questions, with its bootstrap interval."""
    found = [values[question] for question in sorted(values)]
    if not found:
        return "-"
    middle = form.format(geometric_mean(found))
    if not interval:
        return middle
    low, high = (form.format(value).rstrip("x") for value in bootstrap(found, geometric_mean))
    return f"{middle} ({low} to {high})"


def bootstrap(values: Sequence[float], of: Callable[[list[float]], float]) -> tuple[float, float]:
    """The middle 95 % of a statistic over resampled values (Efron 1979, percentile method)."""
    dice = random.Random(1)
    found = sorted(of(dice.choices(values, k=len(values))) for _ in range(SAMPLES))
    return found[int(0.025 * SAMPLES)], found[int(0.975 * SAMPLES)]


def best_fixed(speeds: Figures) -> dict[str, float]:
    """By question the speed of draftd's fastest fixed policy, to draft nothing being one of them."""
    fixed = [each for name, each in speeds.items() if name.startswith("draftd ") and name != "draftd auto"]
    shared = set.intersection(*(set(each) for each in fixed)) if len(fixed) > 1 else set()
    return {question: max(each[question] for each in fixed) for question in sorted(shared)}


def same(document: dict[str, Any], name: str, own: str) -> str:
    """How many answers have the text of the same library's plain ones, where the seed decides on it."""
    if own == name or own not in document["memory_bytes"]:
        return "-"
    if document["sampling"]["temperature"] and not name.startswith("draftd "):
        return OTHER_DRAWS
    plain = {question: turns[0]["text"] for question, turns in answers(document, own).items()}
    found = [
        all(each["text"] == plain[question] for each in turns)
        for question, turns in answers(document, name).items()
    ]
    return f"{sum(found)}/{len(found)}"


def by_category(document: dict[str, Any]) -> dict[str, set[str]]:
    """The questions of each category."""
    found: dict[str, set[str]] = {}
    for result in document["results"]:
        found.setdefault(result["category"], set()).add(result["question_id"])
    return found


def picked(values: dict[str, float], questions: set[str]) -> dict[str, float]:
    return {question: value for question, value in values.items() if question in questions}


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [row(heads), "|---" * len(heads) + "|", *map(row, rows)]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def caption(document: dict[str, Any], counted: bool) -> str:
    """How to read the table."""
    repeat, sampling = document["repeat"], document["sampling"]
    asked = f"medians of {repeat} answers to each prompt" if repeat > 1 else "one answer to each prompt"
    asks = len({result["question_id"] for result in document["results"]})
    counts = max(map(len, both_speeds(document)[0].values()), default=0)
    equal = "*same*: answers equal to those of the same library without drafting"
    if sampling["temperature"]:
        equal += (
            f", by the same seed; *{OTHER_DRAWS}*: a library that draws from other random numbers when it "
            "drafts gives another answer of the same law, so there is nothing to compare"
        )
    return (
        f"{document['threads']} threads, {sampling['max_tokens']} tokens at most, {asked}, all in turns. "
        "Geometric means over the prompts; in brackets 95 % of a bootstrap over them. "
        f"*{SPEED}*: what came after an answer's first piece over the time since that piece, so without the "
        f"prompt's reading, over the {counts} of {asks} prompts to which every contender had more to say "
        f"then. *{WHOLE}*: all tokens over the time from the request to the end, so with the prompt's "
        f"reading. {ended(document, asks)}*per pass*: tokens that a pass of the target gave, where the "
        "library tells. *MiB*: resident memory of the process after"
        f" each answer, which holds all forms of its library that are named here. {equal}. *best fixed*: for "
        "each prompt the fastest of draftd's fixed policies above, known only in hindsight."
        + ("" if counted else " No counter of energy is readable here.")
    )


def ended(document: dict[str, Any], answered: int) -> str:
    """A word on prompts that a run did not come to."""
    asked = document.get("asked", answered)
    return f"**The run was ended after {answered} of {asked} prompts.** " if answered < asked else ""


def plot(document: dict[str, Any]) -> str:
    """Tokens a second by contender, as SVG."""
    after, whole = both_speeds(document)
    series = {
        "after the first piece": [geometric_mean(each.values()) for each in after.values()],
        "the whole answer, its prompt's reading included": [
            geometric_mean(each.values()) for each in whole.values()
        ],
    }
    return bars(f"tokens a second, {document['pair']}, {document['backend']}", list(after), series)
