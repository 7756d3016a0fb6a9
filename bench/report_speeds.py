"""The report's section of one run of `draftd bench`, the runs' plot, and one table of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import report_kept
import report_limits
import report_peers
from bars import bars
from documents import without_folders
from report_figures import BEHIND
from tables import table

from draftd.daemon.bench_table import geometric_mean, share_of_best

SUMMARY = "Speeds in short"
HEADS = ("category", "alone", "drafted", "speed-up", "per pass", "accepted", "first ms", "same")


def summary(documents: Sequence[dict[str, Any]], old: str = "") -> str:
    """A line a run: what was asked, and its figures as a whole; other runs' lines of the old section stay."""
    heads = ["pair", "backend", "temperature", "asked", "over the target alone", "worst category"]
    heads += ["auto / best fixed", "asked again", "commit"]
    new = [dict(zip(heads, line(each), strict=True)) for each in documents]
    rows = report_kept.merged(report_kept.rows(old), new, lambda row: tuple(row[head] for head in heads[:3]))
    return "\n".join(
        [
            f"### {SUMMARY}",
            "",
            "Each run of `draftd bench` below, by geometric means over its categories. *asked*: prompts, and "
            "the most tokens of an answer; *medians of N*: of N answers to a prompt the one of median speed "
            "counts; in brackets 95 % of a bootstrap over the categories; *auto / best fixed*: the "
            "controller over what is best, by category, of the fixed policies named and of drafting nothing; "
            "*asked again*: the same prompt a second time, over the target alone; *-*: not part of the run.",
            "",
            *table(heads, [[row.get(head, "-") for head in heads] for row in rows]),
        ]
    )


def line(document: dict[str, Any]) -> list[str]:
    """One run's cells."""
    by_policy = document.get("policies", {})
    drafted = known({found["name"]: found["speedup"] for found in document["categories"]})
    again = known(by_policy.get("again", {}))
    policy = next(iter(by_policy), "auto")  # whose figures those of the categories are
    sampling = document["sampling"]
    prompts = sum(found["prompts"] for found in document["categories"])
    return [
        document["pair"],
        document["engine"]["backend"],
        str(sampling["temperature"] or "greedy"),
        f"{prompts} x {sampling['max_tokens']} tokens{medians(document)}",
        mean(drafted) + (f" {policy}" if policy != "auto" else ""),
        worst(drafted),
        of_best(document),
        figure(geometric_mean(again.values())),
        document["machine"].get("commit") or "-",
    ]


def title(document: dict[str, Any]) -> str:
    """What a run was of: pair, backend, sampling."""
    return f"{document['pair']}, target in {document['engine']['backend']}, {report_peers.mode(document)}"


def names(document: dict[str, Any]) -> list[str]:
    """The categories."""
    return [found["name"] for found in document["categories"]]


def medians(document: dict[str, Any]) -> str:
    """The end of a sentence on what was asked, if it was asked more than once."""
    return f", medians of {document['repeat']}" if document["repeat"] > 1 else ""


def known(values: Mapping[str, float | None]) -> dict[str, float]:
    """The categories that have a figure: where nothing came after the first token there is none."""
    return {name: value for name, value in values.items() if value is not None}


def figure(value: float | None, unit: str = "x") -> str:
    """Two decimals, or a dash for what is not known."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}{unit}"


def mean(values: Mapping[str, float]) -> str:
    """The geometric mean over the categories, with its bootstrap interval."""
    return report_peers.mean(dict(values), "{:.2f}x")


def worst(values: Mapping[str, float], unit: str = "x") -> str:
    """The least figure, and the category that has it."""
    name = min(values, key=lambda each: values[each], default="")
    return f"{figure(values.get(name), unit)} {name}".rstrip()


def section(document: dict[str, Any]) -> str:
    """One run: its command, its table, what it says of the daemon itself."""
    engine = document["engine"]
    speedups = known({found["name"]: found["speedup"] for found in document["categories"]})
    middle, blank, interval = mean(speedups).partition(" ")
    whole = f"**{middle}**{blank}{interval}"
    rows = [
        *map(cells, document["categories"]),
        [f"**geometric mean of {len(document['categories'])}**", "", "", whole, "", "", "", ""],
        ["*worst*", "", "", worst(speedups), "", "", "", ""],
    ]
    lines = [
        f"### {title(document)}",
        "",
        f"    {without_folders(document['command'])}",
        "",
        f"Target {engine['target']}, draft {engine['draft']}, {engine['threads']} threads; "
        f"answers of {document['sampling']['max_tokens']} tokens at most{medians(document)}.",
        "",
        *table(HEADS, rows),
        "",
        f"Beside the time of the two models: {document['engine_overhead']:.1%} in the engine, "
        f"{document['whole_overhead']:.1%} with queues, sockets and client.",
    ]
    lines += losses(speedups, document.get("plain_ranges", {}) if document["repeat"] > 1 else {})
    if waits := document.get("latency"):
        lines += report_limits.latency(waits)
    if len(document.get("policies", {})) > 1:
        lines += ["", *policies(document)]
    if ping := document["ping"]:
        lines += [
            "",
            f"Ping over {ping['count']}: median {ping['daemon_median'] * 1e6:.0f} µs, a bare ZeroMQ's "
            f"in the same run {ping['bare_median'] * 1e6:.0f} µs: "
            f"{ping['daemon_median'] / ping['bare_median']:.2f} times."
            + (
                f" A bare Unix socket's: {ping['unix_median'] * 1e6:.0f} µs." if "unix_median" in ping else ""
            ),
        ]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip()


def losses(speedups: Mapping[str, float], ranges: Mapping[str, Sequence[float]]) -> list[str]:
    """The categories below the target alone, those first that noise does not explain.

    `ranges`: how far the target alone's own turns were from the speed that counts.
    """
    lost = {name: value for name, value in speedups.items() if value < 1.0}
    noise = [name for name, value in lost.items() if name in ranges and value >= ranges[name][0]]

    def told(name: str) -> str:
        alone = f" ({' to '.join(map(figure, ranges[name]))})" if name in ranges else ""
        return f"{name} {figure(lost[name])}{alone}"

    lines = []
    for what, names in (
        ("Lost, below the target alone", [name for name in lost if name not in noise]),
        ("Below the target alone by no more than its own answers differ", noise),
    ):
        if names:
            lines += ["", f"{what}: {', '.join(map(told, names))}."]
    if lost and ranges:
        lines += [
            "",
            "In brackets: the slowest and the quickest answer of the target alone, over its median.",
        ]
    return lines


def cells(category: Mapping[str, Any]) -> list[str]:
    """One category's cells in a run's own table."""
    found = {name: math.nan if value is None else value for name, value in category.items()}
    share = f" {found['accepted'] / found['drafted']:.0%}" if found["drafted"] else ""
    return [
        category["name"],
        figure(found["plain_speed"], ""),
        figure(found["drafted_speed"], ""),
        figure(found["speedup"]),
        figure(found["accepted_length"], ""),
        f"{found['accepted']}/{found['drafted']}{share}",
        f"{found['drafted_first'] * 1000:.0f}/{found['plain_first'] * 1000:.0f}",
        f"{found['same_text']}/{found['prompts']}",
    ]


def policies(document: dict[str, Any]) -> list[str]:
    """Speed over the target alone by category and policy; the controller against the best fixed one."""
    columns = {policy: (known(each), "x") for policy, each in document["policies"].items()}
    if found := shares(document):
        columns["auto / best fixed"] = (found, "")
    rows = [
        [name, *(figure(values.get(name), unit) for values, unit in columns.values())]
        for name in names(document)
    ]
    means = [figure(geometric_mean(values.values()), unit) for values, unit in columns.values()]
    rows += [
        ["**geometric mean**", *means],
        ["*worst*", *(worst(values, unit) for values, unit in columns.values())],
    ]
    lines = ["By policy, speed over the target alone:", "", *table(["category", *columns], rows)]
    if found:
        lines += ["", against_best(found)]
    if any(None in each.values() for each in document["policies"].values()):
        lines += [
            "",
            "-: nothing came after the first token there, so that no speed is known; left out of the means.",
        ]
    return lines


def shares(document: dict[str, Any]) -> dict[str, float]:
    """By category the controller's speed over that of the best fixed policy; none unless both were asked."""
    found, others = document.get("policies", {}), fixed(document)
    if "auto" not in found or not others:
        return {}
    made = {}
    for name in names(document):
        speedups = {policy: found[policy][name] for policy in ("auto", *others)}
        if None not in speedups.values():
            made[name] = share_of_best(speedups, others)
    return made


def fixed(document: dict[str, Any]) -> list[str]:
    """The fixed policies that a run asked for."""
    return [policy for policy in document.get("policies", {}) if policy not in ("auto", "again")]


def of_best(document: dict[str, Any]) -> str:
    """The controller's share of the best fixed policy, and among which that is the best."""
    found = shares(document)
    return f"{figure(geometric_mean(found.values()), '')} ({', '.join(fixed(document))})" if found else "-"


def against_best(found: Mapping[str, float]) -> str:
    """How many categories' shares are as they should be, and the others by name, the least first."""
    below = sorted((share, name) for name, share in found.items() if share < BEHIND)
    told = ", ".join(f"{name} {share:.3f}" for share, name in below)
    return (
        f"The controller over the best fixed policy: {BEHIND} or more in {len(found) - len(below)} of "
        f"{len(found)} categories{f'; below: {told}' if below else ''}."
    )


def plot(runs: Sequence[report_kept.Run]) -> str:
    """Speed-up by category, a colour a run, as SVG: of the runs with the categories of the first."""
    shown = runs[0].categories
    series = {
        f"{run.title}, geometric mean: {run.mean}": [run.speedup.get(name, math.nan) for name in shown]
        for run in runs
        if run.categories == shown
    }
    return bars("speed over the target alone", shown, series, "x", mark=1.0)
