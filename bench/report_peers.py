"""The report's section of one side-by-side run, and its plot."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bars import bars
from documents import without_folders

from draftd.daemon.bench_table import geometric_mean

OWN = {  # a contender that drafts -> the same library without
    "hf generate": "hf generate plain",
    "llama server": "llama server plain",
    "llama python": "llama python plain",
    "openvino genai int4": "openvino genai int4 plain",
    "draftd": "draftd off",
}
BEST = "draftd best fixed"
SAMPLES = 2000  # of the bootstrap


def section(document: dict[str, Any]) -> str:
    """The command, a line a contender, then tokens a second by category."""
    contenders = list(document["memory_bytes"])
    speeds = by_question(document)
    sampling = document["sampling"]
    joules = any("joules" in result for result in document["results"])
    mode = f"temperature {sampling['temperature']}" if sampling["temperature"] else "greedy"
    command = without_folders(document["command"])
    lines = [
        f"### Side by side: {document['pair']}, draftd's target in {document['backend']}, {mode}",
        "",
        f"    {command}",
        "",
        caption(document, joules),
        "",
        "| contender | tokens a second | over draftd's target alone | over its own plain speed | per pass "
        "| first ms | MiB | same |" + " J a token |" * joules,
        "|---" * (8 + joules) + "|",
    ]
    for name in contenders:
        own = plain_of(name)
        over_own = ratio(speeds, name, own) if own in speeds and own != name else "-"
        mean = geometric_mean(list(speeds[name].values()))
        lines.append(
            f"| {name} | {mean:.2f} | {ratio(speeds, name, 'draftd off')} "
            f"| {over_own} | {per_pass(document, name)} | {first_ms(document, name):.0f} "
            f"| {document['memory_bytes'][name] / 2**20:.0f} | {same(document, name, own)} |"
            + (f" {energy(document, name)} |" if joules else "")
        )
    if hindsight := best_fixed(speeds):
        speeds[BEST] = hindsight
        mean = geometric_mean(list(hindsight.values()))
        lines.append(f"| *{BEST}* | {mean:.2f} | {ratio(speeds, BEST, 'draftd off')} |" + " |" * (5 + joules))
        if "draftd auto" in speeds:
            lines.append(
                f"\nThe controller over the best fixed policy: {ratio(speeds, 'draftd auto', BEST)}."
            )
    lines += [f"\n{label}: not measured ({reason})." for label, reason in document["missing"].items()]
    categories = list(dict.fromkeys(result["category"] for result in document["results"]))
    lines += ["", "Tokens a second by category:", "", f"| contender | {' | '.join(categories)} |"]
    lines.append("|---" * (len(categories) + 1) + "|")
    for name in contenders:
        cells = [category_speed(document, name, category) for category in categories]
        lines.append(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def answers(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Each question's answer of median speed by one contender."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for result in document["results"]:
        if result["contender"] == name:
            grouped.setdefault(result["question_id"], []).append(result)
    return [sorted(each, key=speed)[len(each) // 2] for each in grouped.values()]


def speed(answer: dict[str, Any]) -> float:
    """Tokens a second after the first; nan where there was but one."""
    seconds = answer["seconds"] - answer["first_seconds"]
    return (answer["tokens"] - 1) / seconds if answer["tokens"] > 1 and seconds > 0 else math.nan


def by_question(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Speeds by contender and question, where there is a speed."""
    return {
        name: {
            answer["question_id"]: speed(answer)
            for answer in answers(document, name)
            if not math.isnan(speed(answer))
        }
        for name in document["memory_bytes"]
    }


def category_speed(document: dict[str, Any], name: str, category: str) -> float:
    found = [speed(answer) for answer in answers(document, name) if answer["category"] == category]
    return geometric_mean(found)


def plain_of(name: str) -> str:
    """The contender that is this one's library without drafting; none is the empty name."""
    return next((plain for begin, plain in OWN.items() if name.startswith(begin)), "")


def ratio(speeds: dict[str, dict[str, float]], name: str, other: str) -> str:
    """The geometric mean of one contender's speed over another's, with its bootstrap interval."""
    if other not in speeds:
        return "-"
    shared = sorted(speeds[name].keys() & speeds[other].keys())
    if not shared:
        return "-"
    found = [speeds[name][each] / speeds[other][each] for each in shared]
    low, high = bootstrap(found, geometric_mean)
    return f"{geometric_mean(found):.2f}x ({low:.2f} to {high:.2f})"


def bootstrap(values: Sequence[float], of: Callable[[list[float]], float]) -> tuple[float, float]:
    """The middle 95 % of a statistic over resampled values (Efron 1979, percentile method)."""
    dice = random.Random(1)
    found = sorted(of(dice.choices(values, k=len(values))) for _ in range(SAMPLES))
    return found[int(0.025 * SAMPLES)], found[int(0.975 * SAMPLES)]


def first_ms(document: dict[str, Any], name: str) -> float:
    return 1000 * float(median(answer["first_seconds"] for answer in answers(document, name)))


def caption(document: dict[str, Any], joules: bool) -> str:
    """How to read the table."""
    repeat, sampling = document["repeat"], document["sampling"]
    asked = f"the median of {repeat} answers to each prompt" if repeat > 1 else "one answer to each prompt"
    other = ", which draws from other random numbers when it drafts" if sampling["temperature"] else ""
    return (
        f"{document['threads']} threads, {sampling['max_tokens']} tokens at most, {asked}, all in turns. "
        "In brackets: 95 % of a bootstrap over the prompts. *per pass*: tokens that a pass of the target "
        "gave, where the library tells. *MiB*: resident memory of the process, which holds all forms of "
        "its library that are named here. *same*: answers equal to those of the same library without "
        f"drafting{other}. *best fixed*: for each prompt the fastest of draftd's fixed policies above, "
        "known only in hindsight." + ("" if joules else " No counter of energy is readable here.")
    )


def per_pass(document: dict[str, Any], name: str) -> str:
    """Tokens a pass of the target: by its rounds, or by what was accepted, or nobody knows."""
    tokens = rounds = 0
    for answer in answers(document, name):
        if "rounds" not in answer and "accepted" not in answer:
            return "-"
        tokens += answer["tokens"]
        rounds += answer.get("rounds") or answer["tokens"] - answer["accepted"]
    return f"{tokens / rounds:.2f}" if rounds else "-"


def energy(document: dict[str, Any], name: str) -> str:
    """Joules a token of the whole processor; negative ones, of a counter that ran over, are left out."""
    found = [answer for answer in answers(document, name) if answer.get("joules", -1.0) > 0]
    tokens = sum(answer["tokens"] for answer in found)
    return f"{sum(answer['joules'] for answer in found) / tokens:.2f}" if tokens else "-"


def best_fixed(speeds: dict[str, dict[str, float]]) -> dict[str, float]:
    """By question the speed of draftd's fastest fixed policy, to draft nothing being one of them."""
    fixed = [each for name, each in speeds.items() if name.startswith("draftd ") and name != "draftd auto"]
    shared = set.intersection(*(set(each) for each in fixed)) if len(fixed) > 1 else set()
    return {question: max(each[question] for each in fixed) for question in sorted(shared)}


def same(document: dict[str, Any], name: str, own: str) -> str:
    """How many answers have the text of the same library's plain ones."""
    plain = {answer["question_id"]: answer["text"] for answer in answers(document, own)} if own else {}
    found = [answer["text"] == plain[answer["question_id"]] for answer in answers(document, name) if plain]
    return f"{sum(found)}/{len(found)}" if found and own != name else "-"


def plot(document: dict[str, Any]) -> str:
    """Tokens a second by contender, as SVG."""
    means = {name: geometric_mean(list(each.values())) for name, each in by_question(document).items()}
    title = f"tokens a second, {document['pair']}, {document['backend']}"
    return bars(title, list(means), {"": list(means.values())})
