"""Write docs/benchmarks.md: `python bench/report.py OUT.json ...`.

The files are those that `draftd bench --json` and the programs of this folder wrote, in the page's order.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import report_limits
import report_peers
import report_plots
import report_speeds

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = re.compile(r"^!\[[^\]]*\]\(([\w.-]+\.svg)\)$", re.MULTILINE)  # a line that `picture` gave


def main(files: list[Path]) -> None:
    """Replace everything below `## Results`, and the pictures there."""
    documents = report_limits.joined([read(file) for file in files])
    page = DOCS / "benchmarks.md"
    kept, _, old = page.read_text("utf-8").partition("## Results")
    own = [each for each in documents if "kind" not in each]
    beside = [each for each in documents if each.get("kind") == "side by side"]
    drawn: dict[str, str] = {}
    parts = [here := machine(documents[0])]
    if own:
        parts.append(report_speeds.summary(own))
        alike = [each for each in own if report_speeds.asked(each) == report_speeds.asked(own[0])]
        parts.append(picture(drawn, "speedup", report_speeds.plot(alike), "speed-up by category"))
    parts += [placed(report_speeds.section(each), each, here) for each in own]
    if len(beside) > 1:
        parts.append(report_peers.summary(beside))
    for each in beside:
        name, plot = report_plots.name(each), report_peers.plot(each)
        parts.append(placed(report_peers.section(each), each, here))
        parts.append(picture(drawn, name, plot, "tokens a second by contender"))
    for each in documents:
        if (kind := each.get("kind")) in report_limits.KINDS:
            parts.append(placed(report_limits.section(each), each, here))
            if draw := report_plots.PLOTS.get(kind):
                parts.append(picture(drawn, report_plots.name(each), draw(each), kind))
    for file, svg in drawn.items():
        (DOCS / file).write_text(svg, "utf-8")
    page.write_text(kept + "## Results\n\n" + "\n\n".join(parts) + "\n", "utf-8")
    for file in set(PICTURE.findall(old)) - drawn.keys():
        (DOCS / file).unlink(missing_ok=True)


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
