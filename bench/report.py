"""Write docs/benchmarks.md: `python bench/report.py OUT.json ...`.

The files are those that `draftd bench --json` and the programs of this folder wrote, in the page's order.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import report_limits
import report_peers
import report_plots
from bars import bars
from documents import without_folders

from draftd.daemon.bench_table import geometric_mean, share_of_best

DOCS = Path(__file__).parents[1] / "docs"


def main(files: list[Path]) -> None:
    """Replace everything below `## Results`."""
    documents = report_limits.joined([read(file) for file in files])
    page = DOCS / "benchmarks.md"
    kept = page.read_text("utf-8").split("## Results")[0]
    own = [each for each in documents if "kind" not in each]
    beside = [each for each in documents if each.get("kind") == "side by side"]
    parts = [here := machine(documents[0])]
    if alike := [each for each in own if names(each) == names(own[0])]:
        parts.append(picture("speedup.svg", plot(alike), "speed-up by category"))
    parts += [placed(section(each), each, here) for each in own]
    if len(beside) > 1:
        parts.append(report_peers.summary(beside))
    for number, each in enumerate(beside):
        parts.append(placed(report_peers.section(each), each, here))
        parts.append(
            picture(f"peers{number + 1}.svg", report_peers.plot(each), "tokens a second by contender")
        )
    for each in documents:
        if (kind := each.get("kind")) in report_limits.KINDS:
            parts.append(placed(report_limits.section(each), each, here))
            if draw := report_plots.PLOTS.get(kind):
                parts.append(picture(report_plots.name(each), draw(each), kind))
    page.write_text(kept + "## Results\n\n" + "\n\n".join(parts) + "\n", "utf-8")


def read(file: Path) -> dict[str, Any]:
    """A document; ends with a sentence if it is none that this page has a section for."""
    try:
        document = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{file} can't be read: {error}")
    kinds = {"side by side", *report_limits.KINDS}
    known = isinstance(document, dict) and "machine" in document
    if not known or ("categories" not in document and document.get("kind") not in kinds):
        sys.exit(f"{file} holds no figures: name files that draftd bench and bench/ wrote by --json")
    return dict(document)


def placed(text: str, document: dict[str, Any], here: str) -> str:
    """A section, which says of what commit it is, and if it was measured on another machine than `here`."""
    commit, there = document["machine"].get("commit"), machine(document)
    said = [f"Measured at commit {commit}."] if commit else []
    said += [f"Measured on another machine: {there}"] if there != here else []
    return "\n\n".join([text, *said])


def picture(file: str, drawn: str, says: str) -> str:
    """Write a picture beside the page; the page's line for it."""
    (DOCS / file).write_text(drawn, "utf-8")
    return f"![{says}]({file})"


def names(document: dict[str, Any]) -> list[str]:
    return [row["name"] for row in document["categories"]]


def machine(document: dict[str, Any]) -> str:
    """What it ran on."""
    found = document["machine"]
    features = [
        name for name in found["cpu_features"] if name.startswith(("avx512_bf16", "avx512_vnni", "amx"))
    ]
    packages = ", ".join(f"{name} {release}" for name, release in found["packages"].items())
    amx = "" if any(name.startswith("amx") for name in features) else ", no AMX"
    return (
        f"{found['cores']} cores ({found['cpu']}; {', '.join(features)}{amx}), "
        f"{found['memory_bytes'] / 2**30:.0f} GiB, Python {found['python']}, {packages}."
    )


def title(document: dict[str, Any]) -> str:
    temperature = document["sampling"]["temperature"]
    mode = f"temperature {temperature}" if temperature else "greedy"
    return f"{document['pair']}, target in {document['engine']['backend']}, {mode}"


def section(document: dict[str, Any]) -> str:
    """One run: its command, its table, what it says of the daemon itself."""
    command = without_folders(document["command"])
    engine = document["engine"]
    lines = [
        f"### {title(document)}",
        "",
        f"    {command}",
        "",
        f"Target {engine['target']}, draft {engine['draft']}, {engine['threads']} threads; "
        f"answers of {document['sampling']['max_tokens']} tokens at most.",
        "",
        "| category | alone | drafted | speed-up | per pass | accepted | first ms | same |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in document["categories"]:
        row = {name: math.nan if figure is None else figure for name, figure in found.items()}
        share = f" {row['accepted'] / row['drafted']:.0%}" if row["drafted"] else ""
        lines.append(
            f"| {row['name']} | {row['plain_speed']:.2f} | {row['drafted_speed']:.2f} "
            f"| {row['speedup']:.2f}x | {row['accepted_length']:.2f} "
            f"| {row['accepted']}/{row['drafted']}{share} "
            f"| {row['drafted_first'] * 1000:.0f}/{row['plain_first'] * 1000:.0f} "
            f"| {row['same_text']}/{row['prompts']} |"
        )
    count = len(document["categories"])
    lines += [
        f"| **geometric mean of {count}** | | | **{document['geometric_mean_speedup']:.2f}x** | | | | |",
        "",
        f"Beside the time of the two models: {document['engine_overhead']:.1%} in the engine, "
        f"{document['whole_overhead']:.1%} with queues, sockets and client.",
    ]
    if lost := [found for found in document["categories"] if (found["speedup"] or 1.0) < 1.0]:
        told = ", ".join(f"{found['name']} {found['speedup']:.2f}x" for found in lost)
        lines += ["", f"Lost, below the target alone: {told}."]
    if found := document.get("latency"):
        lines += report_limits.latency(found)
    if len(document.get("policies", {})) > 1:
        lines += ["", *policies(document)]
    if ping := document["ping"]:
        lines.append(
            f"Ping over {ping['count']}: median {ping['daemon_median'] * 1e6:.0f} µs, a bare ZeroMQ's "
            f"in the same run {ping['bare_median'] * 1e6:.0f} µs: "
            f"{ping['daemon_median'] / ping['bare_median']:.2f} times."
            + (f" A bare Unix socket's: {ping['unix_median'] * 1e6:.0f} µs." if "unix_median" in ping else "")
        )
    return "\n".join(lines)


def policies(document: dict[str, Any]) -> list[str]:
    """Speed over the target alone by category and policy; the controller against the best fixed one."""
    found = document["policies"]
    fixed = [name for name in found if name not in ("auto", "again")]
    compared = "auto" in found and bool(fixed)
    heads = [*found, *["auto / best fixed"] * compared]
    lines = ["By policy, speed over the target alone:", "", f"| category | {' | '.join(heads)} |"]
    lines.append("|---" * (len(heads) + 1) + "|")
    shares, unknown = [], False
    for name in names(document):
        speedups = {policy: each[name] for policy, each in found.items()}
        cells = ["-" if value is None else f"{value:.2f}x" for value in speedups.values()]
        unknown |= None in speedups.values()
        if compared and None in speedups.values():
            cells.append("-")
        elif compared:
            shares.append(share_of_best(speedups, fixed))
            cells.append(f"{shares[-1]:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = [f"{geometric_mean([value for value in each.values() if value]):.2f}x" for each in found.values()]
    if compared:
        means.append(f"{geometric_mean(shares):.2f}")
    lines.append(f"| **geometric mean** | {' | '.join(means)} |")
    if unknown:
        lines += [
            "",
            "-: nothing came after the first token there, so that no speed is known; left out of the means.",
            "",
        ]
    return lines


def plot(documents: list[dict[str, Any]]) -> str:
    """Speed-up by category, a colour a run, as SVG."""
    series = {
        f"{title(each)}, answers a prompt: {each['repeat']}, geometric mean: "
        f"{each['geometric_mean_speedup']:.2f}x": [row["speedup"] or math.nan for row in each["categories"]]
        for each in documents
    }
    return bars("speed over the target alone", names(documents[0]), series, "x", mark=1.0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("python bench/report.py OUT.json ...: the files that draftd bench --json wrote")
    main([Path(name) for name in sys.argv[1:]])
