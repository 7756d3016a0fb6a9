"""How speed goes with apps, context, draft length and cores: `python bench/scaling.py --pair qwen2.5-coder`.

--parts chooses among them. --json keeps the figures for bench/report.py as they come; what the file holds of
other parts stays, so that they can be measured one after the other. A part that fails is told of, and the
rest goes on. Of each answer the tokens after the first count. Fairness is Jain's index over the apps'
speeds: 1 if all are equal, 1/n if one has it all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from time import perf_counter
from typing import Any

import documents
from fair import STEADY, order

from draftd.daemon import machine
from draftd.daemon.bench_table import speed
from draftd.daemon.private import private_daemon
from draftd.daemon.timed import Answer, ask
from draftd.ipc import Client
from draftd.ipc.errors import DraftdError

TEXT = Path(__file__).parents[1] / "docs" / "architecture.md"
QUESTIONS = (
    "Write a Python function that reverses a list.",
    "Explain how rain forms.",
    "Write a short letter to a landlord about a leaking tap.",
    "What is the difference between a list and a tuple in Python?",
    "Describe a walk along the sea.",
    "Write a SQL query that counts the orders of each customer.",
    "Why do leaves turn yellow in autumn?",
    "Give three reasons to learn a foreign language.",
)
PARTS = ("apps", "contexts", "lengths", "cores")
POLICIES = ("off", "auto")
Row = dict[str, Any]  # of a table: what was measured under which circumstances


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--backend", choices=("transformers", "llama_cpp"), default="transformers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--apps", nargs="+", type=documents.count, default=[1, 2, 4, 8])
    parser.add_argument("--contexts", nargs="+", type=documents.count, default=[256, 1024, 2048, 4096, 8000])
    parser.add_argument("--lengths", nargs="+", type=documents.count, default=[1, 2, 4, 8, 16])
    parser.add_argument("--max-tokens", type=documents.count, default=48)
    parser.add_argument("--json", type=documents.new_file)
    options = parser.parse_args()
    document = begin(options)
    failed = False
    for part in options.parts:
        documents.tell(f"{part} begins")
        began = perf_counter()
        rows: list[Row] = []
        try:
            for row in MEASURES[part](options):
                rows.append(row)
                document[part] = rows  # what an earlier run measured stays until now
                documents.tell(f"{part}: {row}")
                keep(document, options.json)
        except (DraftdError, OSError, BrokenBarrierError) as error:
            failed = True
            documents.tell(f"{part} failed, what was measured is kept: {type(error).__name__}: {error}")
        took = perf_counter() - began
        documents.tell(f"{part} took {took:.0f} s")
        if rows:
            document["seconds"][part] = took
            keep(document, options.json)
            print(*tables(document, [part]), sep="\n", flush=True)
    sys.exit(failed)


def begin(options: argparse.Namespace) -> dict[str, Any]:
    """A new document, or the file's own if it is of the same pair, backend, length and machine."""
    asked = {"pair": options.pair, "backend": options.backend, "max_tokens": options.max_tokens}
    document = documents.begin("scaling", **asked, seconds={})
    if options.json and options.json.exists():
        kept: dict[str, Any] = json.loads(options.json.read_text("utf-8"))
        if differs := [name for name in ("kind", *asked) if kept.get(name) != document[name]]:
            sys.exit(f"{options.json} holds another {differs[0]}: {kept.get(differs[0])}; name another file")
        here, there = document["machine"], kept.get("machine", {})
        if differs := [name for name in here if there.get(name) != here[name]]:
            what = ", ".join(differs)
            sys.exit(f"{options.json} is of another machine or other versions ({what}); name another file")
        if document["command"] not in kept["command"].splitlines():
            kept["command"] += "\n" + document["command"]
        return kept
    return document


def keep(document: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


@contextmanager
def daemon(options: argparse.Namespace, **settings: int) -> Iterator[str]:
    """A daemon with these settings, that has learnt nothing yet, warm."""
    variables = {f"DRAFTD_{name.upper()}": str(value) for name, value in settings.items()}
    variables |= STEADY | {"DRAFTD_BACKEND": options.backend}
    with private_daemon(options.pair, lambda status: None, variables=variables, cold=True) as endpoint:
        with Client(endpoint, name="scaling") as client:
            for policy in POLICIES:
                question(client, QUESTIONS[0], 8, policy)
        yield endpoint


def question(client: Client, text: str, max_tokens: int, policy: str) -> Answer:
    """One answer of just so many tokens."""
    messages = [{"role": "user", "content": text}]
    return ask(client, messages=messages, max_tokens=max_tokens, ignore_eos=True, seed=1, speculate=policy)


def by_apps(options: argparse.Namespace) -> Iterator[Row]:
    """So many apps that ask at once, each on a connection of its own; with and without drafting."""
    with daemon(options, slots=max(options.apps)) as endpoint:
        for count in options.apps:
            for policy in POLICIES:
                answers, seconds = together(endpoint, count, options.max_tokens, policy)
                speeds = [speed([answer]) for answer in answers]
                yield {
                    "apps": count,
                    "policy": policy,
                    "throughput": sum(answer.tokens for answer in answers) / seconds,
                    "fairness": jain(speeds),
                    "speeds": speeds,
                    "first_seconds": [answer.first_seconds for answer in answers],
                    "seconds": [answer.seconds for answer in answers],
                }


def together(endpoint: str, count: int, max_tokens: int, policy: str) -> tuple[list[Answer], float]:
    """Each app's answer, and the seconds from the first question to the last answer."""
    ready = Barrier(count + 1)

    def app(number: int) -> Answer:
        with Client(endpoint, name=f"app {number}") as client:
            client.ping()  # connected
            ready.wait(60)
            return question(client, QUESTIONS[number % len(QUESTIONS)], max_tokens, policy)

    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(app, number) for number in range(count)]
        ready.wait(60)
        began = perf_counter()
        answers = [each.result() for each in asked]
        return answers, perf_counter() - began


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2) (Jain, Chiu and Hawe 1984)."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def by_context(options: argparse.Namespace) -> Iterator[Row]:
    """One answer behind prompts of about so many tokens."""
    words = TEXT.read_text("utf-8").split()
    words *= 1 + max(options.contexts) // len(words)
    with (
        daemon(options, slots=1, context=max(options.contexts) + options.max_tokens + 64) as endpoint,
        Client(endpoint, name="scaling") as client,
    ):
        room = client.status().engine["context"] - options.max_tokens
        for length in options.contexts:
            text = prompt(client, words, min(length, room))
            for policy in POLICIES:
                given = {"prompt": text, "max_tokens": options.max_tokens, "ignore_eos": True, "seed": 1}
                answer = ask(client, **given, speculate=policy)
                yield {
                    "context": length,
                    "policy": policy,
                    "prompt_tokens": answer.prompt_tokens,
                    "speed": speed([answer]),
                    "first_seconds": answer.first_seconds,
                    "accepted": answer.stats.accepted,
                    "drafted": answer.stats.drafted,
                }


def prompt(client: Client, words: Sequence[str], tokens: int) -> str:
    """A text of nearly so many tokens: words are added as a first look at their tokens suggests."""
    sample = words[: min(100, max(4, tokens // 10))]
    each = client.complete(prompt=" ".join(sample), max_tokens=1).usage.prompt_tokens / len(sample)
    return " ".join(words[: int(0.9 * tokens / each)])


def by_length(options: argparse.Namespace) -> Iterator[Row]:
    """The model drafting fixed lengths, and the controller, over the same questions in turns."""
    policies = ["off", *(f"model:{length}" for length in options.lengths), "auto"]
    answers: dict[str, list[Answer]] = {policy: [] for policy in policies}
    with daemon(options, slots=1) as endpoint, Client(endpoint, name="scaling") as client:
        for turn, text in enumerate(QUESTIONS[:4]):
            for policy in order(policies, turn):
                answers[policy].append(question(client, text, options.max_tokens, policy))
    for policy, made in answers.items():
        yield {
            "policy": policy,
            "speed": speed(made),
            "speedup": speed(made) / speed(answers["off"]),
            "tokens_a_pass": sum(each.made for each in made) / sum(each.stats.rounds for each in made),
            "accepted": sum(each.stats.accepted for each in made),
            "drafted": sum(each.stats.drafted for each in made),
        }


def by_cores(options: argparse.Namespace) -> Iterator[Row]:
    """A daemon of so many threads, one after the other."""
    for cores in range(1, machine.cores() + 1):
        if cores & (cores - 1) and cores != machine.cores():
            continue  # powers of two, and all there are
        with daemon(options, slots=1, threads=cores) as endpoint, Client(endpoint, name="scaling") as client:
            for policy in POLICIES:
                made = [question(client, text, options.max_tokens, policy) for text in QUESTIONS[:2]]
                yield {"cores": cores, "policy": policy, "speed": speed(made)}


MEASURES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "apps": by_apps,
    "contexts": by_context,
    "lengths": by_length,
    "cores": by_cores,
}


def tables(document: dict[str, Any], parts: Sequence[str] = PARTS) -> list[str]:
    """A table for each part that was measured, in Markdown."""
    made: list[str] = []
    if "apps" in parts and (rows := document.get("apps")):
        made += [
            "",
            "Apps that ask at once, each a question of its own:",
            "",
            "| apps | policy | tokens a second, all | Jain's index | each one's tokens a second "
            "| each one's first token, ms | each one's whole answer, s |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            each = [
                ", ".join(f"{value:.1f}" for value in row["speeds"]),
                ", ".join(f"{1000 * value:.0f}" for value in row["first_seconds"]),
                ", ".join(f"{value:.1f}" for value in row["seconds"]),
            ]
            made.append(
                f"| {row['apps']} | {row['policy']} | {row['throughput']:.1f} | {row['fairness']:.3f} "
                f"| {' | '.join(each)} |"
            )
    if "contexts" in parts and (rows := document.get("contexts")):
        made += beside("contexts", "prompt tokens", "prompt_tokens", rows, first=True)
    if "lengths" in parts and (rows := document.get("lengths")):
        made += [
            "",
            "Draft lengths, the same questions in turns:",
            "",
            "| policy | tokens a second | over the target alone | tokens a pass | accepted of drafted |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            made.append(
                f"| {row['policy']} | {row['speed']:.2f} | {row['speedup']:.2f}x "
                f"| {row['tokens_a_pass']:.2f} | {row['accepted']}/{row['drafted']} |"
            )
    if "cores" in parts and (rows := document.get("cores")):
        made += beside("cores", "cores", "cores", rows)
    return made


def beside(title: str, head: str, key: str, rows: Sequence[dict[str, Any]], first: bool = False) -> list[str]:
    """Speeds of both policies side by side, by what changes."""
    by_key: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_key.setdefault(row[key], {})[row["policy"]] = row
    more = ("first ms alone", "first ms drafting") if first else ()
    heads = [head, "alone", "drafting", "speed-up", *more]
    made = ["", f"By {title}, tokens a second:", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for value, found in by_key.items():
        if len(found) < len(POLICIES):
            continue  # the run ended between the two
        off, auto = found["off"], found["auto"]
        cells = [str(value), f"{off['speed']:.2f}", f"{auto['speed']:.2f}"]
        cells.append(f"{auto['speed'] / off['speed']:.2f}x")
        if first:
            cells += [f"{1000 * each['first_seconds']:.0f}" for each in (off, auto)]
        made.append(f"| {' | '.join(cells)} |")
    return made


if __name__ == "__main__":
    documents.run(main)
