"""A guard against getting slower: `python bench/check.py OUT.json` holds a run to bench/floors.toml.

All figures are ratios within the one run, so a slow machine does not fail; exit status 1 if one is beyond its
limit. `make bench-check` makes the run and calls this.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

FLOORS = Path(__file__).with_name("floors.toml")


def figures(document: dict[str, Any]) -> dict[str, float]:
    """What is held to a limit, by the names that floors.toml uses."""
    found: dict[str, float] = {}
    for policy, speedups in document["policies"].items():
        found |= {f"{policy} on {name}": value for name, value in speedups.items() if value is not None}
    found["overhead in the engine"] = document["engine_overhead"]
    found["overhead of everything"] = document["whole_overhead"]
    if document["ping"]:
        found["ping over a bare one"] = document["ping"]["ratio"]
    return found


def main(file: Path) -> int:
    limits = tomllib.loads(FLOORS.read_text("utf-8"))
    found = figures(json.loads(file.read_text("utf-8")))
    failed = 0
    for kind, beyond in (("least", float.__lt__), ("most", float.__gt__)):
        for name, limit in limits[kind].items():
            if name not in found:
                print(f"{name:28} was not measured, and bench/floors.toml has a limit for it")
                failed += 1
                continue
            wrong = beyond(float(found[name]), float(limit))
            failed += wrong
            print(f"{name:28} {found[name]:8.3f}  at {kind} {limit}{'   TOO SLOW' if wrong else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python bench/check.py OUT.json: the file that `draftd bench --json OUT.json` wrote")
    sys.exit(main(Path(sys.argv[1])))
