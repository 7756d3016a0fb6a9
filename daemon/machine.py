"""What this machine is: for the doctor, and for whoever reads a benchmark later."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("draftd", "torch", "transformers", "llama-cpp-python", "numpy", "pyzmq")
CPUINFO = Path("/proc/cpuinfo")
PROCESSORS = "sys/devices/system/cpu"  # below the root
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, those of a Windows around this Linux


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


def cores(root: Path = Path("/")) -> int:
    """How many threads it pays to compute with: one a core of `usable`, as far as the quotas reach.

    The logical processors of one core share its arithmetic units, which a second thread only waits for.
    """
    siblings = "topology/thread_siblings_list"  # who shares a core, itself included
    count = len({text(root / PROCESSORS / f"cpu{one}" / siblings) or one for one in usable(root)})
    for group in cgroup(root):
        quota, _, period = text(group / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            count = min(count, int(quota) // int(period))
    return max(1, count)


def usable(root: Path = Path("/")) -> set[int]:
    """The logical processors that this process may use; slow ones, which hold up a hybrid CPU, apart."""
    if not hasattr(os, "sched_getaffinity"):
        return set(range(os.cpu_count() or 1))
    allowed = os.sched_getaffinity(0)
    fast = _cpu_list(text(root / "sys/devices/cpu_core/cpus"))  # of Intel's hybrids
    if not fast:
        power = {core: number(root / PROCESSORS / f"cpu{core}/cpu_capacity") or 0 for core in allowed}
        fast = {core for core in allowed if 2 * power[core] >= max(power.values())}
    return allowed & fast or allowed


@functools.cache
def cuda() -> bool:
    """Whether torch can use a GPU here, which a build for CPUs can't; one that can't be asked is taken to."""
    if not any(os.path.exists(device) for device in GPUS):
        return False  # and that takes no second
    try:
        import torch
    except (ImportError, OSError):  # not installed, or it does not load
        return True
    return torch.cuda.is_available()


def cgroup(root: Path = Path("/")) -> list[Path]:
    """The process's control group and those above it (version 2), the innermost first."""
    lines = text(root / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return []
    top = root / "sys/fs/cgroup"
    return [part for part in (top / own, *(top / own).parents) if part.is_relative_to(top)]


def text(path: Path) -> str:
    """A file of the kernel's; empty if it is not there, or may not be read."""
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """A number in such a file; None for `max`, or where there is none."""
    found = text(path).strip()
    return int(found) if found.isdigit() else None


def _cpu_list(listed: str) -> set[int]:
    """The kernel's "0-3,8" as a set."""
    found: set[int] = set()
    for part in listed.strip().split(",") if listed.strip() else []:
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


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
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the checkout that this code runs from, "+" if changed since; None if it is of none."""
    own = Path(__file__)
    try:
        told = [
            subprocess.run(["git", "-C", own.parent, *words], capture_output=True, text=True, check=True)
            for words in (["rev-parse", "--show-toplevel"], ["describe", "--always", "--dirty=+"])
        ]
        top, found = (each.stdout.strip() for each in told)
        return found if (Path(top) / "daemon" / own.name).samefile(own) else None
    except (OSError, subprocess.CalledProcessError):
        return None


def command(*program: str) -> str:
    """This command line with its DRAFTD_ variables, less those that name files or hold keys.

    `program` is what it begins with, without any: draftd.
    """
    given = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("DRAFTD_") and "/" not in value and not name.endswith("_KEY")
    ]
    return shlex.join([*given, *(program or ("draftd",)), *sys.argv[1:]])


def trim() -> None:
    """Have the C library return what it has free; only glibc's keeps any and can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
