"""Scores of answers against references, and where two answers part: arithmetic and two libraries."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

from rich import box
from rich.table import Table

TASKS = ("translation", "summarisation", "qa")
SCORES = ("BLEU", "chrF", "ROUGE-1", "ROUGE-L", "token F1", "exact match")  # all from 0 to 100
SPECULATION = ", drafting"  # ends the name of a contender behind its target alone
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Item:
    """A question and what would be a right answer."""

    id: str
    task: str
    text: str
    references: list[str]


@dataclass(slots=True)
class Said:
    """One answer; `tops` are the likeliest tokens' log-probabilities by place, where they were asked for."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    accepted: int = 0  # of its tokens, those that were drafted


@dataclass(frozen=True, slots=True)
class Row:
    """One contender: its scores, and how it compares with the first and with its own target alone."""

    name: str
    scores: dict[str, float]
    same_as_first: int  # answers of the very text
    same_as_own: int | None  # None: it is the target alone
    margins: list[float | None]  # where it left its own target's answer; None: not told
    places: list[int]  # of the first token that differs, for each of `margins`
    items: int
    tokens: int  # of all its answers
    accepted: int  # of these, those that were drafted
    ended: int = 0  # of its answers that differ, those that end where the other goes on, or the reverse


def rows(items: Sequence[Item], said: dict[str, list[Said]]) -> list[Row]:
    """A row a contender; one with speculation comes behind its target alone."""
    first = next(iter(said.values()))
    made = []
    own: list[Said] = []
    for name, answers in said.items():
        alone = not name.endswith(SPECULATION)
        pairs = [] if alone else list(zip(own, answers, strict=True))
        parted = [part for pair in pairs if (part := parting(*pair))]
        made.append(
            Row(
                name=name,
                scores=scores(items, [answer.text for answer in answers]),
                same_as_first=_same(first, answers),
                same_as_own=None if alone else _same(own, answers),
                margins=[margin for _, margin in parted],
                places=[place for place, _ in parted],
                items=len(items),
                tokens=sum(len(answer.tokens) for answer in answers),
                accepted=sum(answer.accepted for answer in answers),
                ended=sum(_one_ends(one, other) for one, other in pairs),
            )
        )
        own = answers if alone else own
    return made


def _same(some: Sequence[Said], others: Sequence[Said]) -> int:
    return sum(one.text == other.text for one, other in zip(some, others, strict=True))


def _one_ends(one: Said, other: Said) -> bool:
    """Whether one answer is the other's beginning: it ended by a token that is not told."""
    shared = min(len(one.tokens), len(other.tokens))
    return len(one.tokens) != len(other.tokens) and one.tokens[:shared] == other.tokens[:shared]


def parting(alone: Said, other: Said) -> tuple[int, float | None] | None:
    """The first place where two answers differ, and by how much the target preferred its own token there.

    In nats; None if the other token was not among the likeliest, and all of it None if nothing differs.
    """
    for place, (one, two) in enumerate(zip(alone.tokens, other.tokens, strict=False)):
        if one != two:
            top = alone.tops[place] if place < len(alone.tops) else {}
            known = one in top and two in top
            return place, top[one] - top[two] if known else None
    if len(alone.tokens) == len(other.tokens):
        return None
    return min(len(alone.tokens), len(other.tokens)), None  # one of them ended there: `_one_ends`


def scores(items: Sequence[Item], texts: Sequence[str]) -> dict[str, float]:
    """Each score over the task that it is made for; a task without items has none."""
    by_task: dict[str, list[tuple[str, list[str]]]] = {task: [] for task in TASKS}
    for item, text in zip(items, texts, strict=True):
        by_task[item.task].append((text.strip(), item.references))
    found: dict[str, float] = {}
    if pairs := by_task["translation"]:
        found |= translation_scores(pairs)
    if pairs := by_task["summarisation"]:
        found |= rouge_scores(pairs)
    if pairs := by_task["qa"]:
        found["token F1"] = 100 * mean(max(token_f1(text, each) for each in right) for text, right in pairs)
        found["exact match"] = 100 * mean(
            any(normalised(text) == normalised(each) for each in right) for text, right in pairs
        )
    return found


def translation_scores(pairs: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """Corpus BLEU and chrF; a sentence with fewer references than the most has its first again."""
    import sacrebleu

    most = max(len(references) for _, references in pairs)
    streams = [[(right[at] if at < len(right) else right[0]) for _, right in pairs] for at in range(most)]
    texts = [text for text, _ in pairs]
    return {
        "BLEU": sacrebleu.corpus_bleu(texts, streams).score,
        "chrF": sacrebleu.corpus_chrf(texts, streams).score,
    }


def rouge_scores(pairs: Sequence[tuple[str, list[str]]]) -> dict[str, float]:
    """The mean F of ROUGE-1 and ROUGE-L, the best reference of each, words stemmed."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = [scorer.score_multi(right, text) for text, right in pairs]
    return {
        name: 100 * mean(each[key].fmeasure for each in found)
        for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-L", "rougeL"))
    }


def normalised(text: str) -> str:
    """SQuAD's normal form: no case, punctuation, articles or extra blanks (Rajpurkar et al. 2016)."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split())


def token_f1(text: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words, in SQuAD's normal form."""
    said, right = normalised(text).split(), normalised(reference).split()
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else 0.0


def table(rows: Sequence[Row]) -> Table:
    """A line a contender."""
    title = "BLEU, chrF; ROUGE-1, -L; token F1, exact match; same text as first, as own target"
    made = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("contender", no_wrap=True)
    for heading in ("BLEU", "chrF", "R-1", "R-L", "F1", "EM", "first", "own"):
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(*cells(row))
    return made


def cells(row: Row) -> list[str]:
    """A row's cells: name, scores, answers equal to the first contender's and to its own target's."""
    own = "-" if row.same_as_own is None else f"{row.same_as_own}/{row.items}"
    values = [row.scores.get(name, math.nan) for name in SCORES]
    shown = ["-" if math.isnan(value) else f"{value:.1f}" for value in values]
    return [row.name, *shown, f"{row.same_as_first}/{row.items}", own]


def divergences(rows: Sequence[Row]) -> list[str]:
    """Of each contender with speculation: where it left its target's answer, and how near a tie."""
    made = []
    for row in rows:
        if row.same_as_own is None:
            continue
        begins = f"{row.name} ({row.accepted} of {row.tokens} tokens were drafted): "
        if not row.places:
            made.append(f"{begins}no answer differs from the target's alone.")
            continue
        margins = [margin for margin in row.margins if margin is not None]
        where = f"first at token {median(row.places):.0f} (median)"
        told = [f"{begins}{len(row.places)} of {row.items} answers differ, {where}"]
        if margins:
            told.append(
                f"there the target preferred its own token by {median(margins):.3f} nats at the median and "
                f"{max(margins):.3f} at most"
            )
        if beyond := len(row.margins) - len(margins) - row.ended:
            told.append(f"in {beyond} the other token was not among the likeliest")
        if row.ended:
            told.append(f"in {row.ended} one of the two ended there, whose margin is not told")
        made.append("; ".join(told) + ".")
    return made
