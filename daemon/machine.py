"""What this machine is: for the doctor, and for whoever reads a benchmark later."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("draftd", "torch", "transformers", "llama-cpp-python", "numpy", "pyzmq")
CPUINFO = Path("/proc/cpuinfo")


def package_version(name: str) -> str | None:
    """The installed version, None if the package is not there; it is not imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu() -> tuple[str, frozenset[str]]:
    """The CPU's name and its features as the kernel lists them; none where there is no /proc."""
    values: dict[str, str] = {}
    if CPUINFO.exists():
        for line in CPUINFO.read_text("utf-8", "replace").split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            values[key.strip()] = value.strip()
    name = values.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((values.get("flags") or values.get("Features") or "").split())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The machine and the versions on it, for a report."""
    name, features = cpu()
    return {
        "cpu": name,
        "cpu_features": sorted(
            feature for feature in features if feature.startswith(("avx", "amx", "asimd"))
        ),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: package_version(package) for package in PACKAGES},
    }
