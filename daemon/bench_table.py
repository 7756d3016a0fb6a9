"""What the bench measured, summed by category: plain arithmetic over finished requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.table import Table

from draftd.daemon.timed import Answer

# Spec-Bench reports its first eight categories as one group, multi-turn conversation.
CONVERSATION = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
SPEC_BENCH = {"translation", "summarization", "qa", "math_reasoning", "rag"}
HEADINGS = ("alone", "drafted", "speed-up", "per pass", "accepted", "first ms", "same")


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt answered with and without speculation; of repeated answers the ones of median speed."""

    question: str
    category: str
    drafted: Answer
    plain: Answer
    same_text: bool  # of all its answers with and without speculation, repeated ones too


@dataclass(frozen=True, slots=True)
class Measured:
    """One prompt's answers by policy, as often as they were repeated; `off` is the target alone."""

    question: str
    category: str
    answers: dict[str, list[Answer]]


@dataclass(frozen=True, slots=True)
class Row:
    """Several prompts together; speeds are tokens a second after the first token, nan where none came."""

    name: str
    prompts: int
    plain_speed: float
    drafted_speed: float
    accepted_length: float  # tokens a target pass gave, with speculation
    drafted: int
    accepted: int
    plain_first: float  # seconds to the first token, median
    drafted_first: float
    same_text: int  # prompts whose answers, with and without speculation, all had one text

    @property
    def speedup(self) -> float:
        return self.drafted_speed / self.plain_speed


def speed(answers: Sequence[Answer]) -> float:
    """Tokens a second after the first ones, all answers together."""
    seconds = sum(answer.seconds - answer.first_seconds for answer in answers)
    tokens = sum(answer.tokens - answer.first_tokens for answer in answers)
    return tokens / seconds if tokens and seconds > 0 else math.nan


def typical(answers: Sequence[Answer]) -> Answer:
    """Of repeated answers the one of median speed."""
    return sorted(answers, key=lambda answer: speed([answer]))[len(answers) // 2]


def results(measured: Sequence[Measured], policy: str) -> list[Result]:
    """Each prompt by one policy and without speculation."""
    found = []
    for each in measured:
        drafted, plain = each.answers[policy], each.answers["off"]
        same = len({answer.text for answer in (*drafted, *plain)}) == 1
        found.append(Result(each.question, each.category, typical(drafted), typical(plain), same))
    return found


def plain_ranges(measured: Sequence[Measured]) -> dict[str, tuple[float, float]]:
    """By category the target alone's slowest and quickest turn, over the speed that counts: its noise."""
    found = {}
    for name in dict.fromkeys(each.category for each in measured):
        answers = [each.answers["off"] for each in measured if each.category == name]
        counts = speed([typical(turns) for turns in answers])
        speeds = [speed(turn) / counts for turn in zip(*answers, strict=True)]
        if not any(map(math.isnan, speeds)):
            found[name] = (min(speeds), max(speeds))
    return found


def row(name: str, results: Sequence[Result]) -> Row:
    plain = [result.plain for result in results]
    drafted = [result.drafted for result in results]
    rounds = sum(answer.stats.rounds for answer in drafted)
    return Row(
        name=name,
        prompts=len(results),
        plain_speed=speed(plain),
        drafted_speed=speed(drafted),
        accepted_length=sum(answer.made for answer in drafted) / rounds if rounds else math.nan,
        drafted=sum(answer.stats.drafted for answer in drafted),
        accepted=sum(answer.stats.accepted for answer in drafted),
        plain_first=median(answer.first_seconds for answer in plain),
        drafted_first=median(answer.first_seconds for answer in drafted),
        same_text=sum(result.same_text for result in results),
    )


def by_category(results: Sequence[Result]) -> list[Row]:
    """One row a category, in the order in which the prompts name them."""
    names = dict.fromkeys(result.category for result in results)
    return [row(name, [result for result in results if result.category == name]) for name in names]


def by_group(results: Sequence[Result]) -> list[Row]:
    """Spec-Bench's six groups, if all its 13 categories are there; else nothing."""
    if {result.category for result in results} != CONVERSATION | SPEC_BENCH:
        return []
    grouped: dict[str, list[Result]] = {}
    for result in results:
        name = "conversation" if result.category in CONVERSATION else result.category
        grouped.setdefault(name, []).append(result)
    return [row(name, members) for name, members in grouped.items()]


def geometric_mean(values: Iterable[float]) -> float:
    """Of the values that are numbers; nan if none is."""
    logs = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def engine_overhead(results: Sequence[Result]) -> float:
    """Seconds the engine took beside the models, as a share of the models' seconds."""
    answers = [answer for result in results for answer in (result.drafted, result.plain)]
    models = sum(answer.model_seconds for answer in answers)
    return sum(answer.stats.overhead_seconds for answer in answers) / models if models else math.nan


def whole_overhead(results: Sequence[Result]) -> float:
    """The same for all that the client waited for beyond the models: engine, front, sockets, client."""
    answers = [answer for result in results for answer in (result.drafted, result.plain)]
    models = sum(answer.model_seconds for answer in answers)
    return sum(answer.seconds for answer in answers) / models - 1 if models else math.nan


def table(results: Sequence[Result]) -> Table:
    """One line a category, then all prompts together, then the geometric mean of the categories."""
    rows = by_category(results)
    made = Table(
        title="tokens a second with drafting and without, in one run",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    made.add_column("category", no_wrap=True)
    for heading in HEADINGS:
        made.add_column(heading, justify="right")
    for line in rows:
        made.add_row(*_cells(line))
    made.add_section()
    made.add_row(*_cells(row("all prompts", results)))
    mean = geometric_mean(line.speedup for line in rows)
    made.add_row(f"geometric mean of {len(rows)}", "", "", _number(mean, "x"))
    if groups := by_group(results):
        mean = geometric_mean(line.speedup for line in groups)
        made.add_row("Spec-Bench's 6 groups", "", "", _number(mean, "x"))
    return made


def share_of_best(speedups: Mapping[str, float], fixed: Iterable[str]) -> float:
    """The controller's speed-up over that of the best fixed policy, to draft nothing being one of them."""
    return speedups["auto"] / max(1.0, *(speedups[policy] for policy in fixed))


def policies_table(by_policy: dict[str, list[Result]]) -> Table:
    """Speed over the target alone by category and policy, and `auto` against the best of the fixed ones."""
    rows = {policy: by_category(each) for policy, each in by_policy.items()}
    fixed = [policy for policy in rows if policy not in ("auto", "again")]
    compared = "auto" in rows and bool(fixed)
    made = Table(title="speed over the target alone by policy", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("category", no_wrap=True)
    for heading in [*rows, *["auto / best fixed"] * compared]:
        made.add_column(heading, justify="right")
    shares = []
    for index, line in enumerate(next(iter(rows.values()))):
        speedups = {policy: each[index].speedup for policy, each in rows.items()}
        cells = [_number(value, "x") for value in speedups.values()]
        if compared:
            shares.append(share_of_best(speedups, fixed))
            cells.append(_number(shares[-1]))
        made.add_row(line.name, *cells)
    made.add_section()
    means = [_number(geometric_mean(line.speedup for line in each), "x") for each in rows.values()]
    made.add_row("geometric mean", *means, *[_number(geometric_mean(shares))] * compared)
    return made


def _cells(line: Row) -> list[str]:
    share = f" {line.accepted / line.drafted:.0%}" if line.drafted else ""
    return [
        line.name,
        _number(line.plain_speed),
        _number(line.drafted_speed),
        _number(line.speedup, "x"),
        _number(line.accepted_length),
        f"{line.accepted}/{line.drafted}{share}",
        f"{line.drafted_first * 1000:.0f}/{line.plain_first * 1000:.0f}",
        f"{line.same_text}/{line.prompts}",
    ]


def _number(value: float, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:.2f}{unit}"
