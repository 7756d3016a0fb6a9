"""The energy that the processor has used, where a counter is readable: Intel's RAPL through the kernel."""

from __future__ import annotations

from pathlib import Path

ZONES = Path("/sys/class/powercap")


def joules(zones: Path = ZONES) -> float | None:
    """Joules since some moment, of all processor packages together; None where no counter is readable.

    A counter that has run over in between makes the difference of two readings negative: leave it out then.
    """
    found = []
    try:
        for zone in sorted(zones.glob("intel-rapl:[0-9]*")):
            # The platform (psys) beside packages has them in it, and what is below them are parts of them.
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package-"):
                found.append(int((zone / "energy_uj").read_text()) / 1e6)
    except (OSError, ValueError):
        return None
    return sum(found) if found else None
