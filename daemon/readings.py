"""What the machine says of its memory, heat, battery and load; each reading may be missing.

Cheap enough for once a second: a few small files, no library that computes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Set
from pathlib import Path

import psutil

from draftd.daemon.governor import Reading
from draftd.daemon.machine import cgroup, number, text

TICK = os.sysconf("SC_CLK_TCK")  # of the times in /proc/stat and /proc/*/stat
NICE = 1  # column of /proc/stat
IDLE = (3, 4)  # columns of /proc/stat that are no use of the CPU: idle, iowait
GUEST = slice(0, 8)  # guest time is counted in user time as well


def read(root: Path = Path("/")) -> Reading:
    """A reading of everything; `root` is where /proc and /sys are."""
    return Reading(_stall(root), _available(root), _temperature(), *_battery(root))


def memory_room(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes that can still be used and bytes there are: the machine's, or what a control group leaves.

    A group's limit is memory.high where that is less than memory.max: beyond it tasks are held back.
    """
    lines = (line.split() for line in text(root / "proc/meminfo").splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
    room, total = sizes.get("MemAvailable:", 0), sizes.get("MemTotal:", 0)
    for group in cgroup(root):
        limits = [number(group / name) for name in ("memory.max", "memory.high")]
        used = number(group / "memory.current")
        if used is None or not (given := [limit for limit in limits if limit is not None]):
            continue
        pairs = (line.split() for line in text(group / "memory.stat").splitlines())
        cached = next((int(words[1]) for words in pairs if words[0] == "inactive_file"), 0)
        if total == 0 or min(given) - used + cached < room:
            room, total = max(0, min(given) - used + cached), min(given)
    return room, total


def gpu_memory() -> list[int]:
    """Bytes free on each NVIDIA GPU that CUDA sees, in its order; empty where nvidia-smi can't tell."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.split()
    if done.returncode != 0 or not all(line.isdigit() for line in lines):
        return []
    free = [int(line) * 2**20 for line in lines]
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        return free
    numbers = [int(each) for each in visible.split(",") if each.strip().isdigit()]  # others are UUIDs
    return [free[number] for number in numbers if number < len(free)]


def cpu_seconds(cores: Set[int], root: Path = Path("/")) -> float | None:
    """Seconds that all programs together have computed on these cores since the start.

    Without those at a lower priority, unless draftd has one too: they give way by themselves. None where the
    system doesn't tell.
    """
    unused = (*IDLE, NICE) if os.nice(0) <= 0 else IDLE
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in text(root / "proc/stat").splitlines():
        name, *columns = line.split()
        if name in wanted:
            ticks += sum(int(value) for at, value in enumerate(columns[GUEST]) if at not in unused)
    return ticks / TICK if ticks else None


def runnable(root: Path = Path("/")) -> int | None:
    """How many threads of all programs compute or wait for a core at this moment, if the system tells."""
    for line in text(root / "proc/stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "procs_running":
            return int(value)
    return None


def process_seconds(pid: int, root: Path = Path("/")) -> float:
    """Seconds that a process has computed, on all its threads; 0 once it is gone."""
    _, _, behind_name = text(root / f"proc/{pid}/stat").rpartition(")")
    columns = behind_name.split()
    return sum(int(value) for value in columns[11:13]) / TICK if columns else 0.0


def _stall(root: Path) -> float | None:
    """The share of the last ten seconds in which a task waited for memory, here or in our control group."""
    places = [root / "proc/pressure/memory", *(group / "memory.pressure" for group in cgroup(root)[:1])]
    found = []
    for place in places:
        for line in text(place).splitlines():
            kind, _, values = line.partition(" avg10=")
            if kind == "some":
                found.append(float(values.split()[0]))
    return max(found, default=None)


def _available(root: Path) -> float | None:
    room, total = memory_room(root)
    return 100.0 * room / total if total else None


def _temperature() -> float | None:
    """The hottest of the sensors that say CPU or GPU; of all if none does."""
    if not hasattr(psutil, "sensors_temperatures"):
        return None
    sensors = {name: [s.current for s in found] for name, found in psutil.sensors_temperatures().items()}
    cores = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "amdgpu", "nouveau", "acpitz", "soc_thermal")
    chosen = [value for name in cores for value in sensors.get(name, [])]
    return max(chosen or [value for values in sensors.values() for value in values], default=None)


def _battery(root: Path) -> tuple[bool | None, float | None]:
    """Whether the machine runs on its battery, and the charge in percent, of several the mean.

    Not psutil's: it takes the battery of a mouse or a headset for the machine's.
    """
    supplies = list(root.glob("sys/class/power_supply/*"))
    mains = {number(place / "online") for place in supplies if _says(place, "type") == "Mains"}
    batteries = [
        place for place in supplies if _says(place, "type") == "Battery" and _says(place, "scope") != "Device"
    ]
    if not batteries:
        return None, None
    states = {_says(place, "status") for place in batteries} - {"Unknown", ""}
    drained = "Discharging" in states if states else 0 in mains
    charges = [charge for place in batteries if (charge := number(place / "capacity")) is not None]
    return (
        drained and 1 not in mains and "Charging" not in states,
        sum(charges) / len(charges) if charges else None,
    )


def _says(place: Path, name: str) -> str:
    return text(place / name).strip()
