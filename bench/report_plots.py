"""The report's pictures of what its tables say, by kind of document."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import roofline
import simulated_apps
import simulated_gpu
from bars import bars
from scaling_tables import PARTS

Document = dict[str, Any]


def name(document: Document) -> str:
    """The picture's name: what was measured, of what, and how."""
    parts = [document["kind"], document["pair"], document.get("backend", ""), document.get("dtype", "")]
    if document["kind"] == "scaling":  # its parts may come from several runs, each with a picture
        parts += [part for part in PARTS if document.get(part)]
    if "sampling" in document:
        parts.append(str(document["sampling"]["temperature"] or "greedy"))
    if document.get("part"):
        parts.append(f"part-{document['part']}")
    return "-".join(part.replace(" ", "-") for part in parts if part)


def _quality(document: Document) -> str:
    scores = ("chrF", "ROUGE-L", "token F1")
    rows = document["rows"]
    series = {score: [row["scores"][score] for row in rows] for score in scores}
    return bars(f"quality, 0 to 100, {document['pair']}", [row["name"] for row in rows], series)


def _roofline(document: Document) -> str:
    found = roofline.bounds(document)
    values = {
        "the controller": document["speedup"]["auto"],
        f"best fixed length ({found['length']:.0f}) at these costs": found["best"],
        "checking free, both models at the memory's speed": found["free"],
    }
    title = f"speed over the target alone, and what would bound it, {document['pair']}, {document['backend']}"
    return bars(title, list(values), {"": list(values.values())}, "x", mark=1.0)


def _scaling(document: Document) -> str:
    found: dict[str, dict[str, float]] = {}
    for part, key, figure, unit in (
        ("apps", "apps", "throughput", "apps at once, together"),
        ("contexts", "prompt_tokens", "speed", "tokens of prompt"),
        ("cores", "cores", "speed", "cores"),
    ):
        for row in document.get(part, ()):
            found.setdefault(f"{row[key]} {unit}", {})[row["policy"]] = row[figure]
    for row in document.get("lengths", ()):
        if row["policy"].startswith("model:"):
            found[row["policy"]] = {"auto": row["speed"]}
    series = {
        "target alone": [each.get("off", math.nan) for each in found.values()],
        "drafting (auto, or as named)": [each.get("auto", math.nan) for each in found.values()],
    }
    return bars(f"tokens a second, {document['pair']}, {document['backend']}", list(found), series)


def _simulated(document: Document) -> str:
    places = [place["name"] for place in document["inputs"]]
    speeds = [simulated_gpu.means(document, place) for place in places]
    shown = ("auto", "model:4", "model:8", "suffix:8")
    series = {policy: [each[policy] for each in speeds] for policy in shown if policy in speeds[0]}
    series["best fixed in hindsight"] = [simulated_gpu.hindsight(document, place) for place in places]
    return bars("SIMULATED: speed over the target alone", places, series, "x", mark=1.0)


def _simulated_apps(document: Document) -> str:
    found: dict[str, dict[str, float]] = {}
    for row in document["rows"]:
        if row["policy"] != "off":
            name = f"{row['machine']}, apps: {row['apps']}"
            found.setdefault(name, {})[row["policy"]] = simulated_apps.gain(document, row)[0]
    policies = next(iter(found.values()))
    series = {policy: [each[policy] for each in found.values()] for policy in policies}
    return bars("SIMULATED: tokens a second of all apps over the target alone", list(found), series, "x", 1.0)


PLOTS: dict[str, Callable[[Document], str]] = {
    "quality": _quality,
    "roofline": _roofline,
    "scaling": _scaling,
    "simulated": _simulated,
    "simulated apps": _simulated_apps,
}
