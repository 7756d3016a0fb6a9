"""Readings from the kernel's files, from made-up trees and from this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from draftd.daemon import machine, readings

MEMINFO = "MemTotal: 1000000 kB\nMemFree: 100 kB\nMemAvailable: 400000 kB\nHugePages_Total: 0\n"
PRESSURE = "some avg10={} avg60=1.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_of_a_machine_without_a_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": MEMINFO, "proc/pressure/memory": PRESSURE.format("7.50")})
    assert readings.memory_room(root) == (400_000 * 1024, 1_000_000 * 1024)
    reading = readings.read(root)
    assert reading.memory_available == 40.0
    assert reading.memory_stall == 7.5


def test_the_tightest_control_group_is_the_limit(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user.slice/draftd.service"
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/old\n0::/user.slice/draftd.service\n",
            "proc/pressure/memory": PRESSURE.format("1.00"),
            f"{group}/memory.max": "200000000\n",
            f"{group}/memory.high": "100000000\n",
            f"{group}/memory.current": "90000000\n",
            f"{group}/memory.stat": "anon 60000000\ninactive_file 15000000\n",
            f"{group}/memory.pressure": PRESSURE.format("33.00"),
            f"{group}/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/memory.current": "95000000\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
        },
    )
    assert readings.memory_room(root) == (25_000_000, 100_000_000)
    assert readings.read(root).memory_stall == 33.0
    assert machine.cores(root) == 1
    (root / group / "cpu.max").write_text("50000 100000\n")
    assert machine.cores(root) == 1


def supply(name: str, **values: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{key}": f"{value}\n" for key, value in values.items()}


@pytest.mark.parametrize(
    ("online", "first", "second", "on_battery"),
    [
        ("0", "Unknown", "Discharging", True),
        ("0", "Unknown", "Unknown", True),
        ("0", "Full", "Full", False),  # by a port that is no mains
        ("0", "Charging", "Discharging", False),
        ("1", "Not charging", "Full", False),
        ("1", "Discharging", "Full", False),  # down to where it is to be charged from
    ],
)
def test_the_machine_runs_on_its_own_batteries(
    tmp_path: Path, online: str, first: str, second: str, on_battery: bool
) -> None:
    files = {
        **supply("ADP1", type="Mains", online=online),
        **supply("BAT0", type="Battery", status=first, capacity="80"),
        **supply("BAT1", type="Battery", scope="System", status=second, capacity="40"),
        **supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity="0"),
    }
    reading = readings.read(tree(tmp_path, files))
    assert (reading.on_battery, reading.battery) == (on_battery, 60.0)


def test_a_mouse_has_a_battery_and_a_desktop_none(tmp_path: Path) -> None:
    mouse = supply("hidpp_battery_0", type="Battery", scope="Device", status="Discharging", capacity="5")
    reading = readings.read(tree(tmp_path / "desktop", mouse))
    assert (reading.on_battery, reading.battery) == (None, None)
    own = supply("macsmc-battery", type="Battery", status="Discharging", capacity="70")  # no mains beside it
    reading = readings.read(tree(tmp_path / "laptop", mouse | own))
    assert (reading.on_battery, reading.battery) == (True, 70.0)


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    reading = readings.read(tmp_path)
    assert reading.memory_stall is None
    assert reading.memory_available is None
    assert readings.cpu_seconds({0}, tmp_path) is None
    assert readings.process_seconds(1, tmp_path) == 0.0
    assert machine.cores(tmp_path) == len(os.sched_getaffinity(0))


def test_performance_cores_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    intel = tree(tmp_path / "intel", {"sys/devices/cpu_core/cpus": "0-3,10\n"})
    assert machine.usable(intel) == {0, 1, 2, 3}
    arm = {
        f"sys/devices/system/cpu/cpu{core}/cpu_capacity": "1024" if core > 3 else "446" for core in range(8)
    }
    assert machine.usable(tree(tmp_path / "arm", arm)) == {4, 5, 6, 7}
    assert machine.usable(tree(tmp_path / "pinned", {"sys/devices/cpu_core/cpus": "16-31"})) == set(range(8))


def test_a_core_gets_one_thread_however_many_logical_processors_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    siblings = {
        f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list": f"{core % 4},{core % 4 + 4}\n"
        for core in range(8)
    }
    root = tree(tmp_path, siblings)
    assert machine.usable(root) == allowed
    assert machine.cores(root) == 4
    allowed = {0, 4, 5}
    assert machine.cores(root) == 2


def test_cpu_seconds_of_this_machine_hold_those_of_this_process() -> None:
    cores = os.sched_getaffinity(0)
    before, own = readings.cpu_seconds(cores), readings.process_seconds(os.getpid())
    while readings.process_seconds(os.getpid()) < own + 0.1:
        pass
    after = readings.cpu_seconds(cores)
    assert before is not None
    assert after is not None
    assert after - before >= 0.08


def test_runnable_threads_are_those_of_this_moment(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/stat": "cpu 1 2\nprocs_running 3\nprocs_blocked 7\n"})
    assert readings.runnable(root) == 3
    assert readings.runnable(tmp_path / "none") is None
    assert (readings.runnable() or 0) >= 1  # this test's
