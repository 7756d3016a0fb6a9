"""Write docs/benchmarks.md: `python bench/report.py OUT.json ...`.

The files are those that `draftd bench --json` and the programs of this folder wrote. A section that none
of them replaces stays as it is, and so do its row and its column in the tables of all runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import report_kept
import report_limits
import report_peers
import report_plots
import report_speeds

DOCS = Path(__file__).parents[1] / "docs"


def main(files: list[Path]) -> None:
    """Replace the sections below `## Results` of which there are new figures, and their pictures."""
    documents = report_limits.joined([read(file) for file in files])
    page = DOCS / "benchmarks.md"
    above, _, below = page.read_text("utf-8").partition("## Results")
    there, old = report_kept.parsed(below)
    by_heading = {report_kept.heading(each): each for each in old}
    own = [each for each in documents if "kind" not in each]
    beside = [each for each in documents if each.get("kind") == "side by side"]
    drawn: dict[str, str] = {}
    here, new = machine(documents[0]), []
    if own:
        new.append(report_speeds.summary(own, by_heading.get(report_speeds.SUMMARY, "")))
    new += [placed(report_speeds.section(each), each, here) for each in own]
    if beside:
        new.append(report_peers.summary(beside, by_heading.get(report_peers.SUMMARY, "")))
    for each in beside:
        name, plot = report_plots.name(each), report_peers.plot(each)
        text = placed(report_peers.section(each), each, here)
        new.append(f"{text}\n\n{picture(drawn, name, plot, 'tokens a second by contender')}")
    for each in documents:
        if (kind := each.get("kind")) in report_limits.KINDS:
            text = placed(report_limits.section(each), each, here)
            if draw := report_plots.PLOTS.get(kind):
                text += f"\n\n{picture(drawn, report_plots.name(each), draw(each), kind)}"
            new.append(text)
    tables = (report_speeds.SUMMARY, report_peers.SUMMARY)  # their runs' sections say where
    kept = [
        each if report_kept.heading(each) in tables else report_kept.moved(each, there, here) for each in old
    ]
    parts = sorted(report_kept.merged(kept, new, report_kept.heading), key=rank)
    if own:
        at = next(at for at, part in enumerate(parts) if report_kept.heading(part) == report_speeds.SUMMARY)
        plot = report_speeds.plot([run for part in parts if (run := report_kept.run(part))])
        parts[at] += f"\n\n{picture(drawn, 'speedup', plot, 'speed-up by category')}"
    results = "\n\n".join([here, *parts])
    for file, svg in drawn.items():
        (DOCS / file).write_text(svg, "utf-8")
    page.write_text(f"{above}## Results\n\n{results}\n", "utf-8")
    for file in {*report_kept.PICTURE.findall(below)} - {*report_kept.PICTURE.findall(results)}:
        (DOCS / file).unlink(missing_ok=True)


def rank(section: str) -> int:
    """Where the page has sections of this kind: all speeds, each run's, side by side, then the limits."""
    named = report_kept.heading(section)
    if named == report_speeds.SUMMARY:
        return 0
    if report_kept.run(section):
        return 1
    others = [report_peers.SUMMARY, "Side by side: ", *(title for title, _ in report_limits.KINDS.values())]
    return next((place for place, title in enumerate(others, 2) if named.startswith(title)), 2 + len(others))


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
    """A section, which says of what commit it is, and if it was made on another machine than `here`."""
    made = "Simulated" if document.get("kind", "").startswith("simulated") else "Measured"
    commit, there = document["machine"].get("commit"), machine(document)
    said = [f"{made} at commit {commit}."] if commit else []
    said += [f"{made} on another machine: {there}"] if there != here else []
    return "\n\n".join([text, *said])


def picture(drawn: dict[str, str], name: str, svg: str, says: str) -> str:
    """Keep a picture under a file name that no other has; the page's line for it."""
    file, number = f"{name}.svg", 1
    while file in drawn:  # runs that asked the same
        number += 1
        file = f"{name}-{number}.svg"
    drawn[file] = svg
    return f"![{says}]({file})"


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


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("python bench/report.py OUT.json ...: the files that draftd bench --json wrote")
    main([Path(name) for name in sys.argv[1:]])
