"""Time to the first token with and without `prefill`: `python bench/prefill.py --pair smollm2`.

Each repetition begins with words of its own, so that nothing of it is computed already. The daemon is this
script's own; `DRAFTD_BACKEND` and the other variables choose what it runs. The first token's time is what the
daemon says (`stats.time_to_first_token`): one that ends within a character reaches the app with the next.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draftd.daemon.private import private_daemon
from draftd.ipc import Client, Done

TEXT = Path(__file__).parents[1] / "docs" / "architecture.md"
QUESTION = "\n\nWhich part of the text above is about speed?"
TOKENS = 24  # of each answer


@dataclass
class Series:
    """Milliseconds by repetition: to the first token, to the eighth, and a round of decoding."""

    first: list[float] = field(default_factory=list)
    eighth: list[float] = field(default_factory=list)
    round: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="smollm2")
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    words = " ".join(TEXT.read_text("utf-8").split()[: options.words])
    with private_daemon(options.pair, lambda status: None) as endpoint, Client(endpoint) as client:
        ask(client, "0 " + words)
        before = {"nothing": 0.0, "all but the question": 0.0, "everything": 0.0}  # seconds of the prefill
        for speculate in (False, True):
            series = {name: Series() for name in before}
            prompt_tokens = 0
            for repetition in range(options.repetitions):
                for name in before:
                    text = f"{speculate} {repetition} {name}: {words}"
                    if name != "nothing":
                        began = time.perf_counter()
                        client.prefill(**turn(text + (QUESTION if name == "everything" else "")))
                        before[name] = time.perf_counter() - began
                    prompt_tokens = measure(client, text + QUESTION, speculate, series[name])
            show(client, options, prompt_tokens, before, series, speculate)


def turn(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def ask(client: Client, text: str, **params: Any) -> tuple[list[float], Done]:
    """The seconds until each token, and what the daemon says at the end."""
    began = time.perf_counter()
    times: list[float] = []
    for event in client.generate(**turn(text), max_tokens=TOKENS, ignore_eos=True, **params):
        if isinstance(event, Done):
            return times, event
        times += [time.perf_counter() - began] * len(event.tokens)
    raise AssertionError("a stream ends with Done")


def measure(client: Client, text: str, speculate: bool, series: Series) -> int:
    times, done = ask(client, text, speculate=speculate)
    series.first.append(1000 * done.stats.time_to_first_token)
    series.eighth.append(1000 * times[7])
    rounds = done.stats.rounds - 1
    series.round.append(1000 * (times[-1] - done.stats.time_to_first_token) / rounds)
    return done.usage.prompt_tokens


def show(
    client: Client,
    options: argparse.Namespace,
    prompt_tokens: int,
    before: dict[str, float],
    series: dict[str, Series],
    speculate: bool,
) -> None:
    backend = client.status().engine["backend"]
    drafting = "with drafting" if speculate else "without drafting"
    print(f"\n{options.pair}, {backend}, {prompt_tokens} prompt tokens, {drafting}; milliseconds, medians of")
    print(f"{options.repetitions}: to the first token, to the eighth, a decode round, first token over round")
    for name, each in series.items():
        first, eighth, round_ = map(statistics.median, (each.first, each.eighth, each.round))
        took = f" (prefill took {1000 * before[name]:.0f})" if before[name] else ""
        print(f"  {name:22}{first:8.1f}{eighth:8.1f}{round_:8.1f}{first / round_:8.2f}{took}")


if __name__ == "__main__":
    main()
