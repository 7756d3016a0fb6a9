"""Round trips of a ping, idle and while a request runs, and what the front keeps in memory.

    python -m tests.reliability.pings [--pair smollm2] [--count 3000]

The two kinds take turns in blocks, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from draftd.daemon.bench_ping import BLOCK, p99
from draftd.ipc import Client
from tests.reliability.daemons import serving_pair
from tests.reliability.record import here, record

# A reader of its own, as an app is: one request after the other until it is ended.
READER = """
import sys
from draftd.ipc import Client
with Client(sys.argv[1]) as client:
    while True:
        for event in client.generate(prompt="Once upon a time", max_tokens=400, ignore_eos=True):
            print("going", flush=True)
"""


def measure(endpoint: str, count: int) -> dict[str, list[float]]:
    """Seconds of `count` pings of each kind."""
    taken: dict[str, list[float]] = {"idle": [], "under load": []}
    with Client(endpoint) as client:
        for _ in range(BLOCK):
            client.ping()
        while len(taken["idle"]) < count:
            taken["idle"] += [client.ping() for _ in range(BLOCK)]
            reader = subprocess.Popen([sys.executable, "-c", READER, endpoint], stdout=subprocess.PIPE)
            assert reader.stdout is not None
            with reader.stdout:
                for _ in range(3):
                    reader.stdout.readline()  # it runs
                taken["under load"] += [client.ping() for _ in range(BLOCK)]
                reader.kill()
                reader.wait()
            while client.status().requests["running"]:
                pass  # its request has ended, too
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--count", type=int, default=3000)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="draftd-") as folder,
        serving_pair(Path(folder), given.pair) as daemon,
    ):
        taken = measure(daemon.endpoint, given.count)
        front = psutil.Process(daemon.process.pid).memory_info().rss / 2**20
    ratio = p99(taken["under load"]) / p99(taken["idle"])
    record(
        "pings",
        [
            here(),
            *(
                (
                    f"{kind}: median, p99 of {len(times)} pings",
                    f"{statistics.median(times) * 1e6:.0f} µs, {p99(times) * 1e6:.0f} µs",
                )
                for kind, times in taken.items()
            ),
            ("p99 under load over idle", f"{ratio:.2f}"),
            ("resident memory of the front", f"{front:.1f} MiB"),
        ],
    )
    return 0 if ratio <= 3.0 and front < 80 else 1


if __name__ == "__main__":
    sys.exit(main())
