"""The energy that the processor has used, where a counter is readable: Intel's RAPL through the kernel."""

from __future__ import annotations

from pathlib import Path

PACKAGES = Path("/sys/class/powercap")


def joules(packages: Path = PACKAGES) -> float | None:
    """Joules since some moment, of all processor packages together; None where no counter is readable.

    A counter that has run over in between makes the difference of two readings negative: leave it out then.
    """
    found = 0.0
    counters = sorted(packages.glob("intel-rapl:[0-9]*/energy_uj"))
    try:
        for counter in counters:
            if counter.parent.name.count(":") == 1:  # a package, not a part of one
                found += int(counter.read_text()) / 1e6
    except (OSError, ValueError):
        return None
    return found if counters else None
