"""Look-up, insertion and memory of the suffix draft by size: `python bench/suffix.py [TOKENS ...]`.

The text is random with the frequencies of words (Zipf) and copied passages. Each size has its own process.
Times are of the processor, so that other programs on the machine don't count.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np
import psutil

from draftd.drafts.base import Context
from draftd.drafts.suffix import SuffixDraft

REQUEST = 1000  # tokens remembered at once
LOOKUPS = 300
LIMIT = 64


def make_text(size: int, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    text = random.zipf(1.25, size) % 50_000
    for _ in range(size // 200):
        source, target = random.integers(0, size - 100, 2)
        length = int(random.integers(5, 60))
        text[target : target + length] = text[source : source + length]
    tokens: list[int] = text.tolist()
    return tokens


def measure(size: int) -> None:
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
    print(
        f"{size:9,} tokens  insert {insert * 1e6:5.2f} µs a token, slowest request {slowest * 1e3:5.1f} ms  "
        f"look-up {_spread(lookups)}  with {drafted / LOOKUPS:.0f} drafted {_spread(steps)}  "
        f"memory {memory / 2**20:6.1f} MiB, {memory / size:.1f} bytes a token"
    )


def _context(tokens: list[int], limit: int) -> Context:
    return Context(0, tokens, limit, lambda row, position: (0, 0.0), lambda confidences: True)


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:.0f} µs (p90 {np.quantile(seconds, 0.9) * 1e6:.0f})"


if __name__ == "__main__":
    sizes = [int(size) for size in sys.argv[1:]] or [10_000, 100_000, 1_000_000]
    if len(sizes) == 1:
        measure(sizes[0])
    else:
        for each in sizes:
            subprocess.run([sys.executable, __file__, str(each)], check=True)
