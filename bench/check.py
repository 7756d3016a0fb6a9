"""`make bench-check`: is draftd slower than it was? Ratios within one run, against bench/floors.toml.

    python bench/check.py [--record] [--json OUT.json]

A ratio is of two things measured in turns on the same machine within seconds, so that a slow or busy machine
moves both; what counts is the median of the repeats, and a floor lies a quarter or more below what was
measured. A ratio below its floor ends the program with status 1. --record lowers the floors to what this
machine shows, for ratios are not the same on all processors; without the file it writes them anew.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import documents
import hot_loop
import numpy as np
from safetensors.numpy import load_file, save_file
from tables import table

from draftd.daemon import bench_ping
from draftd.daemon.bench_files import write
from draftd.daemon.bench_table import speed
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.timed import Answer, ask
from draftd.ipc import Client

ROOT = Path(__file__).parents[1]
FLOORS = Path(__file__).with_name("floors.toml")
SLACK = 0.75  # of what was measured becomes the floor
LOOSE = 0.4  # the same of what takes microseconds and goes through several processes
REPEAT = 5  # of each measurement
TOKENS = 128  # of an answer
PINGS = 100
VOCABULARY = 151_936
PROMPT = "anna met bert in rome, then anna and bert met carl in rome, and carl told anna and bert"
LAYERS = 24  # of the target that is made; its draft has two
# One thread: two wait for each other, and on a busy machine most of all.
SETTINGS = STEADY | {"DRAFTD_THREADS": "1", "DRAFTD_CONTEXT": "512", "DRAFTD_DTYPE": "float32"}
FIRST, PING = "first token, target alone / auto", "a bare ZeroMQ ping / the daemon's"
SHORT = (FIRST, PING)
POLICIES = ("off", "auto", "model:8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--floors", type=Path, default=FLOORS)
    parser.add_argument("--record", action="store_true", help="lower the floors to this run's ratios")
    parser.add_argument("--json", type=documents.new_file)
    options = parser.parse_args()
    began = time.monotonic()
    ratios = own_code() | through_a_daemon()
    floors: dict[str, float] = {}
    if options.record:
        floors = {name: (LOOSE if name in SHORT else SLACK) * ratio for name, ratio in ratios.items()}
        if options.floors.exists():
            kept = read_floors(options.floors, ratios)
            floors = {name: min(floor, kept[name]) for name, floor in floors.items()}
        options.floors.write_text(floors_file(floors), "utf-8")
    else:
        floors = read_floors(options.floors, ratios)
    print(*lines(ratios, floors), sep="\n")
    print(f"\n{time.monotonic() - began:.0f} seconds")
    if options.json:
        document = documents.begin(
            "check",
            ratios=ratios,
            floors=floors,
        )
        write(options.json, document)
    slow = slower(ratios, floors)
    if slow:
        print(f"slower than before: {', '.join(slow)} (floors: {options.floors.name})", file=sys.stderr)
    return 1 if slow else 0


def own_code() -> dict[str, float]:
    """The engine's own code of a round at a wide vocabulary: a fixed work's time over its time."""
    found: dict[str, list[float]] = {name: [] for name in hot_loop.MODES}
    for _ in range(REPEAT):
        for name, mode in hot_loop.MODES.items():
            before = yardstick()
            own = hot_loop.total(hot_loop.answer(VOCABULARY, 40, *mode))
            found[name].append((before + yardstick()) / 2 / own)
    return {
        f"a fixed work / a round's own code, {name}": statistics.median(each) for name, each in found.items()
    }


def yardstick() -> float:
    """Seconds of what a round's code is made of: passes over wide rows, and plain Python."""
    rows = np.ones((9, VOCABULARY), np.float32)
    times = []
    for _ in range(9):
        began = time.thread_time()
        for row in rows:
            row.argmax()
        counts: dict[int, int] = {}
        for number in range(2000):
            counts[number % 64] = counts.get(number % 64, 0) + number
        times.append(time.thread_time() - began)
    return statistics.median(times)


def through_a_daemon() -> dict[str, float]:
    """What drafting gains, and what the daemon costs beside its models."""
    gains: dict[str, list[float]] = {}
    shares, firsts, pings = [], [], []
    with (
        tempfile.TemporaryDirectory(prefix="draftd-") as folder,
        private_daemon("made", lambda status: None, variables=made_pair(Path(folder))) as endpoint,
        Client(endpoint, name="check") as client,
    ):

        def answer(policy: str) -> Answer:
            return ask(client, prompt=PROMPT, max_tokens=TOKENS, ignore_eos=True, speculate=policy)

        for policy in POLICIES:  # the first passes of a process are slower than those that follow
            answer(policy)
        for turn in range(REPEAT):
            made = {policy: answer(policy) for policy in POLICIES[turn % 3 :] + POLICIES[: turn % 3]}
            for policy in POLICIES[1:]:
                gains.setdefault(policy, []).append(speed([made[policy]]) / speed([made["off"]]))
            shares.append(made["off"].model_seconds / made["off"].seconds)
            firsts.append(made["off"].first_seconds / made["auto"].first_seconds)
            pings.append(1 / bench_ping.measure(endpoint, PINGS).ratio)
    return {f"{policy} / target alone": statistics.median(each) for policy, each in gains.items()} | {
        FIRST: statistics.median(firsts),
        "the models' time / all the time that the client waits": statistics.median(shares),
        PING: statistics.median(pings),
    }


def made_pair(folder: Path) -> dict[str, str]:
    """A pair that needs no download, and the variables of a daemon for it.

    Random weights; all layers but the first two add nothing to the target, and the draft has these two only:
    it is many times as fast and nearly always right, so what drafting gains depends on our own code.
    """
    sys.path.append(str(ROOT))
    from tests.tiny import write_tiny
    from tests.tiny_gguf import write_gguf

    target = write_tiny(folder / "target", layers=LAYERS)
    tensors = load_file(target / "model.safetensors")
    few = {}
    for name, tensor in tensors.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        if layer < 2:
            few[name] = tensor
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[:] = 0.0
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    draft = shutil.copytree(target, folder / "draft")
    save_file(few, draft / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((draft / "config.json").read_text("utf-8"))
    (draft / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}), "utf-8")
    write_gguf(draft, folder / "draft.gguf")
    (folder / "catalog.toml").write_text(
        f'[models.target]\npath = "{target}"\n[models.draft]\npath = "{folder / "draft.gguf"}"\n'
        '[pairs.made]\ntarget = "target"\ndraft = "draft"\nbackend = "transformers"\n',
        "utf-8",
    )
    places = {"CATALOG": "catalog.toml", "CONFIG": os.devnull, "STATE_DIR": "state", "CACHE_DIR": "cache"}
    return SETTINGS | {f"DRAFTD_{name}": str(folder / place) for name, place in places.items()}


def read_floors(path: Path, ratios: dict[str, float]) -> dict[str, float]:
    """The recorded floors; a ratio without one, or a floor without a ratio, is an error."""
    try:
        floors = {
            name: float(floor) for name, floor in tomllib.loads(path.read_text("utf-8"))["floors"].items()
        }
    except (OSError, tomllib.TOMLDecodeError, KeyError, AttributeError, ValueError) as error:
        sys.exit(f"{path} holds no floors ({error}): record them with --record on a quiet machine")
    if floors.keys() != ratios.keys():
        differs = ", ".join(sorted(floors.keys() ^ ratios.keys()))
        sys.exit(
            f"{path} and this program measure different things ({differs}): remove it and record all floors "
            "anew with --record"
        )
    return floors


def floors_file(floors: dict[str, float]) -> str:
    rows = [f"{json.dumps(name)} = {floor:.3g}" for name, floor in floors.items()]
    return "\n".join(
        [
            "# What `make bench-check` holds each ratio to: the least of all machines, less some slack.",
            "# Written by `python bench/check.py --record`.",
            "[floors]",
            *rows,
            "",
        ]
    )


def slower(ratios: dict[str, float], floors: dict[str, float]) -> list[str]:
    """The ratios below their floors."""
    return [name for name, ratio in ratios.items() if not ratio >= floors[name]]


def lines(ratios: dict[str, float], floors: dict[str, float]) -> list[str]:
    """The table, in Markdown."""
    slow = slower(ratios, floors)
    rows = [
        [name, f"{ratio:.3g}", f"{floors[name]:.3g}", "SLOWER" if name in slow else "ok"]
        for name, ratio in ratios.items()
    ]
    return table(["ratio", "measured", "floor", ""], rows)


if __name__ == "__main__":
    documents.run(main)
