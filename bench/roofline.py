"""How near to what this machine allows: `python bench/roofline.py --pair qwen2.5-coder --json OUT.json`.

Measures the memory's bandwidth, reads from the files what a pass has to read, and lets a daemon say what its
passes take and how often drafts of each place are accepted. From these: the shortest possible pass, the best
speed-up that a fixed length could give, and what was reached. The round trips of a ping beside a bare
pyzmq's and a bare Unix socket's, idle and while a request runs, belong to it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import documents
import torch
from fair import order
from pass_bytes import draft_bytes, target_bytes
from tables import table

from draftd.daemon import bench_ping, machine
from draftd.daemon.bench_files import write
from draftd.daemon.bench_table import speed
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.settings import Settings
from draftd.daemon.settings import load as load_settings
from draftd.daemon.timed import Answer, ask
from draftd.ipc import Client
from draftd.models.catalog import load_catalog

LENGTHS = (2, 4, 8, 16)  # drafted tokens of the rounds whose passes are timed; acceptance is the longest's
LENGTH = LENGTHS[-1]
PARTS = ("", "MB that a pass reads", "ms at the memory's speed", "ms measured", "of the memory's speed")
PROMPTS = {
    "code": "Write a Python function that merges two sorted lists into one.",
    "prose": "Explain how a bicycle stays upright.",
    "edit": "Write this again with every name in capitals: anna met bert in rome, then anna and bert met "
    "carl in oslo, and carl told anna and bert about rome.",
    "question": "What is the difference between a process and a thread?",
}
# A reader of its own, as an app is: one request after the other until it is ended.
READER = """
import sys
from draftd.ipc import Client
with Client(sys.argv[1]) as client:
    going = False
    while True:
        for event in client.generate(prompt="Once upon a time", max_tokens=200, ignore_eos=True):
            if not going:
                going = True
                print("going", flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--backend", choices=("transformers", "llama_cpp"), default="transformers")
    parser.add_argument("--max-tokens", type=documents.count, default=64)
    parser.add_argument("--pings", type=int, default=2000)
    parser.add_argument("--json", type=documents.new_file)
    options = parser.parse_args()
    settings = load_settings(None)
    if on_gpu(options.backend, settings):
        sys.exit(
            "only the processor's memory is measured here, and a model of these settings would run on a GPU: "
            "set DRAFTD_DEVICE=cpu and DRAFTD_GPU_LAYERS=0"
        )
    pair = load_catalog().pair(options.pair)
    read = {
        "target": target_bytes(pair, options.backend, settings),
        "draft": draft_bytes(pair, options.backend, settings),
    }
    threads = settings.threads or machine.cores()
    bandwidth = read_bandwidth(threads)
    found = measure(options.pair, options.backend, options.max_tokens, options.pings)
    document = documents.begin(
        "roofline",
        pair=options.pair,
        backend=options.backend,
        threads=threads,
        bandwidth=bandwidth,
        bytes=read,
        **found,
    )
    print(*lines(document), sep="\n")
    write(options.json, document)


def on_gpu(backend: str, settings: Settings) -> bool:
    """Whether a daemon with these settings would put one of its models on a GPU."""
    target = backend == "transformers" and settings.device != "cpu" and torch.cuda.is_available()
    return target or settings.gpu_layers != 0


def read_bandwidth(threads: int, size: int = 2**29, repeat: int = 7) -> float:
    """Bytes a second that this many threads read: the best of several sums over an array no cache holds."""
    torch.set_num_threads(threads)
    numbers = torch.ones(size // 4)
    best = 0.0
    for _ in range(repeat):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, size / (time.perf_counter() - began))
    return best


def measure(pair: str, backend: str, max_tokens: int, pings: int) -> dict[str, Any]:
    """What a daemon's passes take, how often drafts are accepted, what the controller makes of it; pings."""
    fixed = {f"model:{length}": length for length in LENGTHS}
    policies = ("off", *fixed, "auto")
    answers: dict[str, list[Answer]] = {policy: [] for policy in policies}
    with (
        private_daemon(
            pair, lambda status: None, variables=STEADY | {"DRAFTD_BACKEND": backend}, cold=True
        ) as endpoint,
        Client(endpoint, name="roofline") as client,
    ):
        for policy in policies:
            ask(client, prompt="Once", max_tokens=8, speculate=policy)
        for turn, text in enumerate(PROMPTS.values()):
            for policy in order(policies, turn):
                message = {"role": "user", "content": text}
                answers[policy].append(
                    ask(client, messages=[message], max_tokens=max_tokens, seed=1, speculate=policy)
                )
        idle = bench_ping.measure(endpoint, pings) if pings else None
        with reading(endpoint):
            load = bench_ping.measure(endpoint, pings) if pings else None
    return {
        "pass_seconds": {
            1 + length: round_seconds(answers[policy])
            for policy, length in {"off": 0, **fixed}.items()
            if not length or any(answer.stats.drafted > 0 for answer in answers[policy])
        },
        "plain_seconds": round_seconds(answers["off"]),
        "drafted_seconds": drafted_seconds(answers[f"model:{LENGTH}"]),
        "reached": reach(answers[f"model:{LENGTH}"]),
        "speedup": {policy: speed(answers[policy]) / speed(answers["off"]) for policy in policies[1:]},
        "pings": {kind: asdict(report) for kind, report in (("idle", idle), ("under load", load)) if report},
    }


def round_seconds(answers: Sequence[Answer]) -> float:
    """Seconds of a round's pass of the target, the prompt's apart."""
    rounds = sum(answer.stats.rounds - 1 for answer in answers)
    return sum(answer.stats.verify_seconds for answer in answers) / max(1, rounds)


def drafted_seconds(answers: Sequence[Answer]) -> float:
    """Seconds of a drafted token."""
    drafted = sum(answer.stats.drafted for answer in answers)
    return sum(answer.stats.draft_seconds for answer in answers) / max(1, drafted)


def reach(answers: Sequence[Answer]) -> list[float]:
    """How often a round's first, second … drafted token was accepted, of all rounds behind the prompt's."""
    rounds = sum(answer.stats.rounds - 1 for answer in answers)
    counts = [0] * LENGTH
    for answer in answers:
        for place, count in enumerate(answer.stats.accepted_by_position):
            counts[place] += count
    return [count / max(1, rounds) for count in counts]


@contextmanager
def reading(endpoint: str) -> Iterator[None]:
    """While an app of its own is being answered."""
    reader = subprocess.Popen([sys.executable, "-c", READER, endpoint], stdout=subprocess.PIPE)
    assert reader.stdout is not None
    try:
        if not reader.stdout.readline():
            raise RuntimeError("no load to measure under: the app that makes it ended before its first token")
        yield
        if reader.poll() is not None:
            raise RuntimeError("the app that makes the load ended while it was measured under")
    finally:
        reader.kill()
        reader.wait()
        reader.stdout.close()


def bounds(document: dict[str, Any]) -> dict[str, float]:
    """What follows from the measurements: seconds, and what a draft of one fixed length could gain at best.

    `best`: the best of all fixed lengths at the acceptance, pass times and draft time that were measured.
    `free`: the same if a pass of any width took what one row takes and both models ran at the memory's speed.
    """
    target, draft = (document["bytes"][part] / document["bandwidth"] for part in ("target", "draft"))
    reached = document["reached"]
    passes = document["pass_seconds"]
    plain = document["plain_seconds"]
    best = free = 1.0
    length = 0
    for drafted in range(1, len(reached) + 1):
        tokens = 1.0 + sum(reached[:drafted])
        seconds = interpolated(passes, drafted + 1, plain) + drafted * document["drafted_seconds"]
        if tokens * plain / seconds > best:
            best, length = tokens * plain / seconds, drafted
        free = max(free, tokens * target / (target + drafted * draft))
    return {"target": target, "draft": draft, "best": best, "length": length, "free": free}


def interpolated(passes: dict[Any, float], rows: int, plain: float) -> float:
    """Seconds of a pass of so many rows, straight between those measured; never less than a plain pass."""
    known = sorted((int(width), seconds) for width, seconds in passes.items())
    below = [(width, seconds) for width, seconds in known if width <= rows] or [(1, plain)]
    above = [(width, seconds) for width, seconds in known if width >= rows] or below[-1:]
    (low, first), (high, last) = below[-1], above[0]
    share = (rows - low) / (high - low) if high > low else 0.0
    return max(plain, first + share * (last - first))


def lines(document: dict[str, Any]) -> list[str]:
    """The tables, in Markdown."""
    found = bounds(document)
    plain, drafted = document["plain_seconds"], document["drafted_seconds"]
    controller = document["speedup"]["auto"]
    fixed = {policy: each for policy, each in document["speedup"].items() if policy != "auto"}
    parts = [
        [
            name,
            f"{document['bytes'][name] / 1e6:.0f}",
            f"{1000 * found[name]:.1f}",
            f"{1000 * seconds:.1f}",
            f"{found[name] / seconds:.0%}",
        ]
        for name, seconds in (("target", plain), ("draft", drafted))
        if document["bytes"][name] and seconds
    ]
    widths = ", ".join(f"{rows}: {1000 * each:.1f}" for rows, each in document["pass_seconds"].items())
    reached = ", ".join(f"{each:.2f}" for each in document["reached"])
    speeds = [
        *([f"{policy}, measured", f"{each:.2f}x"] for policy, each in fixed.items()),
        ["the controller, measured", f"{controller:.2f}x"],
        [
            f"the best fixed length at these costs and this acceptance ({found['length']:.0f})",
            f"{found['best']:.2f}x",
        ],
        ["the controller's share of it", f"{controller / found['best']:.0%}"],
        ["if checking were free and both models ran at the memory's speed", f"{found['free']:.2f}x"],
        ["the controller's share of that", f"{controller / found['free']:.0%}"],
    ]
    made = [
        f"{document['threads']} threads read {document['bandwidth'] / 1e9:.1f} GB a second.",
        "",
        *table(PARTS, parts),
        "",
        f"A pass of the target by rows, ms: {widths}. Drafts accepted by place: {reached}.",
        "",
        *table(("speed over the target alone", ""), speeds),
    ]
    if pings := document["pings"]:
        trips = [
            [
                name,
                *(
                    f"{1e6 * each[f'{key}_median']:.0f} ({1e6 * each[f'{key}_p99']:.0f})"
                    for each in pings.values()
                ),
            ]
            for name, key in (("daemon", "daemon"), ("bare pyzmq", "bare"), ("bare Unix socket", "unix"))
        ]
        made += ["", *table(["round trip, µs, median (p99)", *pings], trips)]
    return made


if __name__ == "__main__":
    documents.run(main)
