"""Look-up, insertion and memory of the suffix draft by size: `python bench/suffix.py [TOKENS ...]`.

The text is random with the frequencies of words (Zipf) and copied passages. Each size has its own process.
Times are of the processor, so that other programs on the machine count little. --json keeps the figures for
bench/report.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import documents
import numpy as np
import psutil
from tables import table

from draftd.daemon.bench_files import write
from draftd.drafts.base import Context
from draftd.drafts.suffix import SuffixDraft

REQUEST = 1000  # tokens remembered at once
LOOKUPS = 300
LIMIT = 64
HEADS = (
    *("tokens remembered", "look-up", "with drafts", "drafted", "remember a token"),
    *("slowest request, ms", "MiB", "bytes a token"),
)


def make_text(size: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    text = random.zipf(1.25, size) % 50_000
    for _ in range(size // 200):
        source, target = random.integers(0, size - 100, 2)
        length = int(random.integers(5, 60))
        text[target : target + length] = text[source : source + length]
    tokens: list[int] = text.tolist()
    return tokens


def measure(size: int) -> dict[str, Any]:
    """Seconds of the processor and bytes, of a memory that holds `size` tokens."""
    text = make_text(size, 0)
    questions = np.random.default_rng(1).integers(100, size - 200, LOOKUPS).tolist()
    draft = SuffixDraft(scope_tokens=size * 2, total_tokens=size * 2)
    process = psutil.Process()
    before = process.memory_info().rss
    slowest = 0.0
    began = time.thread_time()
    for start in range(0, size, REQUEST):
        one = time.thread_time()
        draft.remember("", text[start : start + REQUEST])
        slowest = max(slowest, time.thread_time() - one)
    insert = (time.thread_time() - began) / size
    memory = process.memory_info().rss - before
    lookups, steps, drafted = [], [], 0
    for question in questions:
        tokens = text[question : question + 100]
        draft.forget(0)
        draft.propose([_context(tokens, 1)])  # the slot's own text is new: not timed
        for token in text[question + 100 : question + 103]:
            tokens.append(token)
            one = time.thread_time()
            draft.propose([_context(tokens, 1)])
            lookups.append(time.thread_time() - one)
        one = time.thread_time()
        drafted += len(draft.propose([_context(tokens, LIMIT)])[0].tokens)
        steps.append(time.thread_time() - one)
    return {
        "size": size,
        "insert": insert,  # a token
        "slowest_insert": slowest,  # a request of REQUEST tokens
        "lookup": statistics.median(lookups),
        "lookup_p99": float(np.quantile(lookups, 0.99)),
        "drafted": drafted / LOOKUPS,  # tokens that a look-up with LIMIT gave
        "drafting": statistics.median(steps),
        "drafting_p99": float(np.quantile(steps, 0.99)),
        "memory": memory,
    }


def _context(tokens: list[int], limit: int) -> Context:
    return Context(0, tokens, limit, lambda row, position: (0, 0.0), lambda confidences: True)


def lines(document: dict[str, Any]) -> list[str]:
    """The table, in Markdown."""
    rows = []
    for row in document["sizes"]:
        cells = [f"{row['size']:,}"]
        cells += [
            f"{1e6 * row[name]:.0f} ({1e6 * row[name + '_p99']:.0f})" for name in ("lookup", "drafting")
        ]
        cells += [f"{row['drafted']:.0f}", f"{1e6 * row['insert']:.1f}", f"{1e3 * row['slowest_insert']:.1f}"]
        cells += [f"{row['memory'] / 2**20:.1f}", f"{row['memory'] / row['size']:.0f}"]
        rows.append(cells)
    return [
        f"Microseconds of the processor, median (p99) of {LOOKUPS}; with drafts: up to {LIMIT} tokens a "
        f"look-up. Remembered in requests of {REQUEST} tokens.",
        "",
        *table(HEADS, rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sizes", type=documents.count, nargs="*", default=[10_000, 100_000, 1_000_000], metavar="TOKENS"
    )
    parser.add_argument("--one", action="store_true", help="only the first size, in this process, as JSON")
    parser.add_argument("--json", type=documents.new_file)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.sizes[0])))
        return
    found = []
    for size in options.sizes:
        child = [sys.executable, __file__, "--one", str(size)]
        done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout))
    document = documents.begin("suffix", sizes=found)
    print(*lines(document), sep="\n")
    write(options.json, document)


if __name__ == "__main__":
    documents.run(main)
