"""The first token with and without `prefill`: `python bench/prefill.py --json OUT.json --pair smollm2`.

Each repetition begins with words of its own, so that nothing of it is computed already; new ones begin until
`--seconds` are over, so that a slow pair gives a result too. The first token's time is what the daemon says
(`stats.time_to_first_token`): one that ends within a character reaches the app with the next.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import documents
from documents import tell
from fair import order
from tables import table

from draftd.daemon.bench_files import write
from draftd.daemon.private import STEADY, private_daemon
from draftd.ipc import Client, Done
from draftd.ipc.messages import Status

TEXT = Path(__file__).parents[1] / "docs" / "architecture.md"
QUESTION = "\n\nWhich part of the text above is about speed?"
TOKENS = 12  # of each answer
PREFILLED = ("nothing", "all but the question", "everything")
POLICIES = ("off", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--backend", choices=["transformers", "llama_cpp"], help="else the pair's own")
    parser.add_argument("--words", type=documents.count, default=120)
    parser.add_argument("--repetitions", type=documents.count, default=5)
    parser.add_argument("--seconds", type=float, default=150.0, help="after which no repetition begins")
    parser.add_argument("--json", type=documents.new_file, help="a file for bench/report.py")
    options = parser.parse_args()
    words = " ".join(TEXT.read_text("utf-8").split()[: options.words])
    variables = STEADY | ({"DRAFTD_BACKEND": options.backend} if options.backend else {})
    with (
        private_daemon(options.pair, loading(), variables=variables, cold=True) as endpoint,
        Client(endpoint, name="bench") as client,
    ):
        tell("ready; one answer to warm up")
        ask(client, "0 " + words, "off")
        backend = client.status().engine["backend"]
        asked = measure(client, words, options.repetitions, options.seconds)
    document = documents.begin(
        "prefill",
        pair=options.pair,
        backend=backend,
        asked=asked,
    )
    print("\n".join(lines(document)))
    write(options.json, document)


def loading() -> Callable[[Status], None]:
    """Tells the daemon's state, whenever it says something new."""
    told = ""

    def hear(status: Status) -> None:
        nonlocal told
        if status.detail != told:
            told = status.detail
            tell(told)

    return hear


def measure(client: Client, words: str, repetitions: int, seconds: float) -> list[dict[str, Any]]:
    """Each question asked: its policy, what was prefilled, and its milliseconds."""
    asked: list[dict[str, Any]] = []
    end = time.monotonic() + seconds
    for repetition in range(repetitions):
        for policy, prefilled in order(list(product(POLICIES, PREFILLED)), 0, repetition):
            text = f"{policy} {repetition} {prefilled}: {words}"
            took = 0.0
            if prefilled != "nothing":
                began = time.perf_counter()
                client.prefill(**turn(text + (QUESTION if prefilled == "everything" else "")))
                took = 1000 * (time.perf_counter() - began)
            made = ask(client, text + QUESTION, policy)
            asked.append({"policy": policy, "prefilled": prefilled, "prefill": took, **made})
            tell(
                f"{repetition + 1} of {repetitions}, drafting {policy}, prefilled {prefilled} "
                f"({took:.0f} ms): first token after {made['first']:.0f} ms, a round {made['round']:.0f}"
            )
        if time.monotonic() >= end:
            tell(f"{seconds:.0f} s are over: that is all")
            break
    return asked


def turn(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def ask(client: Client, text: str, policy: str) -> dict[str, float]:
    """One answer: milliseconds to its first token and of its other rounds, and the prompt's tokens."""
    began = time.perf_counter()
    last = 0.0
    for event in client.generate(**turn(text), max_tokens=TOKENS, ignore_eos=True, speculate=policy):
        if isinstance(event, Done):
            first = event.stats.time_to_first_token
            rounds = max(1, event.stats.rounds - 1)  # the prompt's own gave a token, too
            return {
                "first": 1000 * first,
                "round": 1000 * (last - first) / rounds,
                "prompt_tokens": event.usage.prompt_tokens,
            }
        last = time.perf_counter() - began
    raise AssertionError("a stream ends with Done")


def lines(document: dict[str, Any]) -> list[str]:
    """The table: medians, and the first token over a decode round of one token."""
    asked = document["asked"]

    def median(what: str, policy: str, *prefilled: str) -> float:
        return statistics.median(
            float(each[what]) for each in asked if each["policy"] == policy and each["prefilled"] in prefilled
        )

    plain = median("round", "off", *PREFILLED)
    count = sum(each["policy"] == "off" and each["prefilled"] == "nothing" for each in asked)
    rows = []
    for policy, prefilled in product(POLICIES, PREFILLED):
        first, took = median("first", policy, prefilled), median("prefill", policy, prefilled)
        rows.append([policy, prefilled, f"{took:.0f}", f"{first:.1f}", f"{first / plain:.2f}"])
    return [
        f"{asked[0]['prompt_tokens']} prompt tokens, medians of {count}; a decode round of one token takes "
        f"{plain:.1f} ms. In milliseconds:",
        "",
        *table(("drafting", "prefilled", "the prefill", "first token", "over a decode round"), rows),
        "",
    ]


if __name__ == "__main__":
    documents.run(main)
