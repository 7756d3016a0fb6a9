"""The report's section of one side-by-side run, its plot, and one table of all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bars import bars
from contenders import OF_BACKEND
from documents import ended, libraries, without_folders
from peer_process import NO_FORM, never_began, spoken
from report_figures import (
    GAIN,
    SPEED,
    WHOLE,
    WHOLE_GAIN,
    Figures,
    answers,
    best_fixed,
    bootstrap,
    both_speeds,
    over,
    picked,
    quantities,
)
from report_kept import columns, merged
from report_waits import waits
from tables import row, table

from draftd.daemon.bench_table import geometric_mean

OWN = {  # a contender that drafts -> the same library without
    "hf generate": "hf generate plain",
    "llama server": "llama server plain",
    "llama python": "llama python plain",
    "openvino genai int4": "openvino genai int4 plain",
    "openvino genai GGUF": "openvino genai GGUF plain",
    "draftd": "draftd off",
}
SUMMARY = "Side by side, all runs"
BEST = "draftd best fixed"
OTHER_DRAWS, OTHER_TARGET, NOT_ASKED = "other draws", "other target", "not asked"
OTHER_WEIGHTS, AS_DRAFTD = "other weights", "as draftd's target alone"
FORMS = {SPEED: "{:.2f}", GAIN: "{:.2f}x", WHOLE: "{:.2f}", WHOLE_GAIN: "{:.2f}x"}
FORMS |= {"per pass": "{:.2f}", "first ms": "{:.0f}", "MiB": "{:.0f}"}
ENERGY = {"J a token": "{:.2f}"}
COUNTED = " *J a token*: of the whole processor package, whatever ran there."


def section(document: dict[str, Any]) -> str:
    """The command, a line a contender with geometric means and intervals, then each quantity by category."""
    counted = any("joules" in result for result in document["results"])
    forms = FORMS | ENERGY if counted else FORMS
    found = quantities(document, counted)
    heads = ["contender", *forms, "over its own plain speed", "same", AS_DRAFTD]
    lines = [
        f"### Side by side: {asked_of(document)}{part_of(document)}",
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
        known = [mean(found[each].get(BEST, {}), forms[each]) for each in forms]
        lines.append(row([f"*{BEST}*", *known, "", "", ""]))
        if "draftd auto" in found[WHOLE]:
            after, whole = (
                mean(over(found[each], "draftd auto", BEST), "{:.2f}x") for each in (SPEED, WHOLE)
            )
            lines.append(
                f"\nThe controller over the best fixed policy: {after} after the first, {whole} whole."
            )
    for label, reason in document["missing"].items():
        lines.append(f"\n{label}: not measured ({without_folders(reason)}).")
    lines += waits(document)
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
    return f"{document['pair']}, draftd's target in {document['backend']}, {mode(document)}"


def part_of(document: dict[str, Any]) -> str:
    """Which part a run is of a comparison whose forms do not fit in memory together."""
    return f", part {document['part']}" if document.get("part") else ""


def mode(document: dict[str, Any]) -> str:
    """How a run sampled."""
    temperature = document["sampling"]["temperature"]
    return f"temperature {temperature}" if temperature else "greedy"


def summary(documents: Sequence[dict[str, Any]], old: str = "") -> str:
    """All runs in one table: speeds after the first token, and over `off`.

    Of runs that asked the same, a contender's figures are of the first that has them. Columns of other runs
    in the old section stay as they are.
    """
    runs: dict[str, list[tuple[dict[str, Any], Figures]]] = {}
    for document in documents:
        runs.setdefault(in_full(document), []).append((document, both_speeds(document)[0]))
    titles = Counter(in_short(same[0][0]) for same in runs.values())
    before = columns(old)
    named = [name for _, cells in before for name in cells]
    named += [name for same in runs.values() for _, speeds in same for name in speeds]
    new = []
    for run, same in runs.items():
        short = in_short(same[0][0])
        new.append((run if titles[short] > 1 else short, {name: in_all(same, name) for name in named}))
    found = merged(before, new, lambda column: tuple(column[0].split(", ")[:3]))  # as `in_short` has them
    rows = [[name, *(cells.get(name, NOT_ASKED) for _, cells in found)] for name in dict.fromkeys(named)]
    rows = [cells for cells in rows if any(cell[0].isdigit() for cell in cells[1:])]
    return "\n".join(
        [
            f"### {SUMMARY}",
            "",
            "Tokens a second after the first, and how that stands to draftd with its target alone; geometric "
            "means over the prompts of a run. Compare down a column only. Of runs that asked the same, a "
            f"contender's figures are of the first that has it. *{NO_FORM}*: there is none for what was "
            "asked; each run's section has the reasons. "
            f"*{OTHER_TARGET}*: the library does not run the weights of this column's target.",
            "",
            *table(["contender", *(head for head, _ in found)], rows),
        ]
    )


def in_all(same: Sequence[tuple[dict[str, Any], Figures]], name: str) -> str:
    """A contender's cell in the table of all runs: of the first that has it, else of one that says why."""
    having = [each for each in same if each[1].get(name)]
    missing = [each for each in same if name in each[0]["missing"]]
    document, speeds = (having or missing or same)[0]
    if not having:
        return absent(document, name)
    gain = mean(over(speeds, name, "draftd off"), "{:.2f}x", interval=False)
    return f"{mean(speeds[name], '{:.1f}', interval=False)}, {gain}"


def in_short(document: dict[str, Any]) -> str:
    """A run in the table of all of them."""
    return asked_of(document).replace("draftd's target in ", "")


def in_full(document: dict[str, Any]) -> str:
    """The same with what else it was asked: longest answer, context, prompts; older documents tell less."""
    parts = [in_short(document), f"{document['sampling']['max_tokens']} tokens"]
    if "context" in document:
        parts.append(f"context {document['context']}")
    if "asked" in document:
        file = f" of {document['prompts']}" if "prompts" in document else ""
        parts.append(f"{document['asked']} prompts{file}")
    return ", ".join(parts)


def absent(document: dict[str, Any], name: str) -> str:
    """Why a run has no figures of a contender, as a cell; files of earlier programs call all of it failed."""
    missing = document["missing"]
    if name not in missing:
        if never_began(name, missing):
            return "failed"
        return OTHER_TARGET if of_another_target(name, document["backend"]) else NOT_ASKED
    return NO_FORM if missing[name].startswith(NO_FORM) else "failed"


def of_another_target(name: str, backend: str) -> bool:
    """Whether a contender's library is compared only where draftd's target is in another backend."""
    others = {each for peers in OF_BACKEND.values() for each in peers} - {*OF_BACKEND[backend]}
    return any(name.startswith(f"{spoken(each)} ") for each in others)


def line(document: dict[str, Any], found: dict[str, Figures], name: str, forms: dict[str, str]) -> list[str]:
    """One contender's cells."""
    own = plain_of(name)
    against = over(found[SPEED], name, own) if own != name else {}
    figures = [mean(found[title][name], form) for title, form in forms.items()]
    return [
        name,
        *figures,
        mean(against, "{:.2f}x"),
        same(document, name, own),
        "-" if own == "draftd off" else as_draftd(document, name),
    ]


def plain_of(name: str) -> str:
    """The contender that is this one's library without drafting; none is the empty name."""
    return next((plain for begin, plain in OWN.items() if name.startswith(begin)), "")


def mean(values: dict[str, float], form: str, interval: bool = True) -> str:
    """The geometric mean over the questions, with its bootstrap interval."""
    found = [values[question] for question in sorted(values)]
    if not found:
        return "-"
    middle = form.format(geometric_mean(found))
    if not interval or len(found) == 1:
        return middle
    low, high = (form.format(value).rstrip("x") for value in bootstrap(found, geometric_mean))
    return f"{middle} ({low} to {high})"


def same(document: dict[str, Any], name: str, own: str) -> str:
    """To how many prompts all answers are the same library's plain ones, where the seed decides on them."""
    if own == name or own not in document["memory_bytes"]:
        return "-"
    if document["sampling"]["temperature"] and not name.startswith("draftd "):
        return OTHER_DRAWS
    plain = answers(document, own)
    found = [
        len({each["text"] for each in [*turns, *plain[question]]}) == 1
        for question, turns in answers(document, name).items()
    ]
    return f"{sum(found)}/{len(found)}"


def as_draftd(document: dict[str, Any], name: str) -> str:
    """To how many prompts all answers are those of draftd's target alone, where the weights are the same."""
    return OTHER_WEIGHTS if " int4 " in name else same(document, name, "draftd off")


def by_category(document: dict[str, Any]) -> dict[str, set[str]]:
    """The questions of each category."""
    found: dict[str, set[str]] = {}
    for result in document["results"]:
        found.setdefault(result["category"], set()).add(result["question_id"])
    return found


def caption(document: dict[str, Any], counted: bool) -> str:
    """How to read the table."""
    repeat, sampling = document["repeat"], document["sampling"]
    asked = f"medians of {repeat} answers to each prompt" if repeat > 1 else "one answer to each prompt"
    asks = len({result["question_id"] for result in document["results"]})
    counts = max(map(len, both_speeds(document)[0].values()), default=0)
    equal = "*same*: prompts to which all answers equal those of the same library without drafting"
    if sampling["temperature"]:
        equal += (
            f", by the same seed; *{OTHER_DRAWS}*: a library that draws from other random numbers when it "
            "drafts gives another answer of the same law, so there is nothing to compare"
        )
    equal += (
        f". *{AS_DRAFTD}*: prompts to which all answers equal those of draftd's target alone; other kernels "
        f"round otherwise, so near ties part; *{OTHER_WEIGHTS}*: what it runs is no target of draftd's"
    )
    return (
        f"{document['threads']} threads, {sampling['max_tokens']} tokens at most, {asked}, all in turns. "
        "Geometric means over the prompts; in brackets 95 % of a bootstrap over them. "
        f"*{SPEED}*: what came after an answer's first piece over the time since that piece, so without the "
        f"prompt's reading, over the {counts} of {asks} prompts to which every contender had more to say "
        f"then. *{WHOLE}*: all tokens over the time from the request to the end, so with the prompt's "
        f"reading. {ended(document, asks)}*per pass*: tokens that a pass of the target gave, where the "
        "library tells. *MiB*: resident memory, after each answer, of the process that holds all forms of "
        "its library named here (of draftd: front and engine); what one form takes is under *Memory of each "
        f"form alone* (`bench/memory.py`). {equal}. *best fixed*: for each prompt the fastest of draftd's "
        "fixed policies above, known only in hindsight; the best of several is flattered by noise, so the "
        "controller's share of it looks lower than it is."
        + (COUNTED if counted else " No counter of energy is readable here.")
        + libraries(document)
    )


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
