"""What bench/scaling.py measured, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tables import table

PARTS = ("apps", "contexts", "lengths", "cores")
POLICIES = ("off", "auto")
APPS = (
    *("apps", "policy", "tokens a second, all", "Jain's index", "Jain's index, whole answers"),
    *("each one's tokens a second", "each one's first token, ms", "each one's whole answer, s"),
)
LENGTHS = ("policy", "tokens a second", "over the target alone", "tokens a pass", "accepted of drafted")
Row = dict[str, Any]  # of a table: what was measured under which circumstances


def tables(document: dict[str, Any], parts: Sequence[str] = PARTS) -> list[str]:
    """A table for each part that was measured."""
    made: list[str] = []
    if "apps" in parts and (rows := document.get("apps")):
        often = repeated(rows, "each one's: of the middle turn")
        made += [
            "",
            f"Apps that ask at once, each a question of its own{often}. N apps ask the first N of the eight "
            "questions of `bench/scaling.py`, so only lines of as many apps compare. Jain's index is of the "
            "speeds after the first token, and of those of the whole answers, so with the wait for the first "
            "token (-: not told by an older run): 1 where all are alike, 1/N where one has all:",
            "",
            *table(APPS, map(of_apps, rows)),
        ]
    if "contexts" in parts and (rows := document.get("contexts")):
        made += beside("contexts", "prompt tokens", "prompt_tokens", rows, first=True)
    if "lengths" in parts and (rows := document.get("lengths")):
        often = repeated(rows, "accepted of drafted: of all turns")
        made += [
            "",
            f"Draft lengths, the same questions in turns{often}:",
            "",
            *table(LENGTHS, map(of_length, rows)),
        ]
    if "cores" in parts and (rows := document.get("cores")):
        made += beside("cores", "cores", "cores", rows)
    return made


def of_apps(row: Row) -> list[str]:
    """The cells of so many apps with one policy."""
    whole = row.get("fairness_whole")
    return [
        str(row["apps"]),
        row["policy"],
        f"{row['throughput']:.1f}",
        f"{row['fairness']:.3f}",
        "-" if whole is None else f"{whole:.3f}",
        ", ".join(f"{value:.1f}" for value in row["speeds"]),
        ", ".join(f"{1000 * value:.0f}" for value in row["first_seconds"]),
        ", ".join(f"{value:.1f}" for value in row["seconds"]),
    ]


def of_length(row: Row) -> list[str]:
    """The cells of one policy."""
    return [
        row["policy"],
        f"{row['speed']:.2f}",
        f"{row['speedup']:.2f}x",
        f"{row['tokens_a_pass']:.2f}",
        f"{row['accepted']}/{row['drafted']}",
    ]


def repeated(rows: Sequence[Row], other: str = "") -> str:
    """What a caption says of medians, and of `other` figures; nothing where each row is of one turn."""
    count = len(rows[0].get("turns", [0]))  # older files have none
    if count == 1:
        return ""
    return f", medians of {count}" + (f" ({other})" if other else "")


def beside(title: str, head: str, key: str, rows: Sequence[Row], first: bool = False) -> list[str]:
    """Speeds of both policies side by side, by what changes."""
    by_key: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_key.setdefault(row[key], {})[row["policy"]] = row
    more = ("first ms alone", "first ms drafting") if first else ()
    lines = []
    for value, found in by_key.items():
        if len(found) < len(POLICIES):
            continue  # the run ended between the two
        off, auto = found["off"], found["auto"]
        cells = [str(value), f"{off['speed']:.2f}", f"{auto['speed']:.2f}"]
        cells.append(f"{auto['speed'] / off['speed']:.2f}x")
        if first:
            cells += [f"{1000 * each['first_seconds']:.0f}" for each in (off, auto)]
        lines.append(cells)
    how = " (each length of the text goes on in another way, so compare along a line)" if first else ""
    return [
        "",
        f"By {title}, tokens a second{repeated(rows)}{how}:",
        "",
        *table([head, "alone", "drafting", "speed-up", *more], lines),
    ]
