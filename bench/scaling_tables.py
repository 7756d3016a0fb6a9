"""What bench/scaling.py measured, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PARTS = ("apps", "contexts", "lengths", "cores")
POLICIES = ("off", "auto")
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
            "speeds after the first token: 1 where all are alike, 1/N where one has all:",
            "",
            "| apps | policy | tokens a second, all | Jain's index | each one's tokens a second "
            "| each one's first token, ms | each one's whole answer, s |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            each = [
                ", ".join(f"{value:.1f}" for value in row["speeds"]),
                ", ".join(f"{1000 * value:.0f}" for value in row["first_seconds"]),
                ", ".join(f"{value:.1f}" for value in row["seconds"]),
            ]
            made.append(
                f"| {row['apps']} | {row['policy']} | {row['throughput']:.1f} | {row['fairness']:.3f} "
                f"| {' | '.join(each)} |"
            )
    if "contexts" in parts and (rows := document.get("contexts")):
        made += beside("contexts", "prompt tokens", "prompt_tokens", rows, first=True)
    if "lengths" in parts and (rows := document.get("lengths")):
        often = repeated(rows, "accepted of drafted: of all turns")
        made += [
            "",
            f"Draft lengths, the same questions in turns{often}:",
            "",
            "| policy | tokens a second | over the target alone | tokens a pass | accepted of drafted |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            made.append(
                f"| {row['policy']} | {row['speed']:.2f} | {row['speedup']:.2f}x "
                f"| {row['tokens_a_pass']:.2f} | {row['accepted']}/{row['drafted']} |"
            )
    if "cores" in parts and (rows := document.get("cores")):
        made += beside("cores", "cores", "cores", rows)
    return made


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
    heads = [head, "alone", "drafting", "speed-up", *more]
    made = ["", f"By {title}, tokens a second{repeated(rows)}:", ""]
    made += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for value, found in by_key.items():
        if len(found) < len(POLICIES):
            continue  # the run ended between the two
        off, auto = found["off"], found["auto"]
        cells = [str(value), f"{off['speed']:.2f}", f"{auto['speed']:.2f}"]
        cells.append(f"{auto['speed'] / off['speed']:.2f}x")
        if first:
            cells += [f"{1000 * each['first_seconds']:.0f}" for each in (off, auto)]
        made.append(f"| {' | '.join(cells)} |")
    return made
