"""How speed goes with apps, context, draft length and cores: `python bench/scaling.py --pair qwen2.5-coder`.

--parts chooses among them. --json keeps the figures for bench/report.py as they come; what the file holds of
other parts stays, so that they can be measured one after the other. A part that fails is told of, and the
rest goes on. --repeat measures each so often, with and without drafting in turns, and what is told are the
medians. Of each answer the tokens after the first count. Fairness is Jain's index over the apps' speeds: 1 if
all are equal, 1/n if one has it all. It is told of whole answers too, with the wait for the first token.
"""

from __future__ import annotations

import argparse
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from statistics import median
from threading import Barrier, BrokenBarrierError
from time import perf_counter
from typing import Any, TypeVar

import documents
from fair import jain, order
from scaling_tables import PARTS, POLICIES, Row, tables

from draftd.daemon import machine
from draftd.daemon.bench_files import write
from draftd.daemon.bench_table import speed
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.timed import Answer, ask
from draftd.ipc import Client
from draftd.ipc.errors import ContextOverflow, DraftdError, InvalidRequest

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
TEXTS = (ROOT / "docs" / "architecture.md", ROOT / "ipc" / "PROTOCOL.md")  # of contexts: nothing comes twice
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
    parser.add_argument("--repeat", type=documents.count, default=1, help="the medians of so many turns")
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
                write(options.json, document)
        except (DraftdError, OSError, BrokenBarrierError) as error:
            failed = True
            documents.tell(f"{part} failed, what was measured is kept: {type(error).__name__}: {error}")
        took = perf_counter() - began
        documents.tell(f"{part} took {took:.0f} s")
        if rows:
            document["seconds"][part] = took
            write(options.json, document)
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


def continued(client: Client, text: str, max_tokens: int, policy: str) -> Answer:
    """What follows a text, just so many tokens of it."""
    return ask(client, prompt=text, max_tokens=max_tokens, ignore_eos=True, seed=1, speculate=policy)


def in_turns(
    repeat: int, policies: Sequence[str], measures: Mapping[int, Callable[[str], T]]
) -> dict[str, list[list[T]]]:
    """What each of the measures gave by policy and turn; none always follows the same policy.

    `measures`: by a number that its orders are made from.
    """
    found: dict[str, list[list[T]]] = {policy: [[] for _ in range(repeat)] for policy in policies}
    for turn in range(repeat):
        for number, measure in measures.items():
            for policy in order(policies, number, turn):
                found[policy][turn].append(measure(policy))
    return found


def medians(turns: Sequence[dict[str, float]]) -> Row:
    """Each figure's median over the turns, and what each turn gave."""
    row: Row = {name: median(turn[name] for turn in turns) for name in turns[0]}
    return row | {"turns": turns}


def counts(turns: Sequence[Sequence[Answer]]) -> Row:
    """What was drafted and accepted in all turns together."""
    made = [answer.stats for turn in turns for answer in turn]
    return {"accepted": sum(each.accepted for each in made), "drafted": sum(each.drafted for each in made)}


def by_apps(options: argparse.Namespace) -> Iterator[Row]:
    """So many apps that ask at once, each on a connection of its own; with and without drafting."""
    with daemon(options, slots=max(options.apps)) as endpoint:
        for count in options.apps:
            asked = {count: partial(together, endpoint, count, options.max_tokens)}
            for policy, turns in in_turns(options.repeat, POLICIES, asked).items():
                yield {"apps": count, "policy": policy} | of_apps([turn for (turn,) in turns])


def of_apps(turns: Sequence[Row]) -> Row:
    """What all apps got, as medians, and what each got in the turn that was the middle one for all."""
    middle = sorted(turns, key=itemgetter("throughput"))[len(turns) // 2]
    told = ("throughput", "fairness", "fairness_whole")
    return middle | medians([{name: turn[name] for name in told} for turn in turns])


def together(endpoint: str, count: int, max_tokens: int, policy: str) -> Row:
    """What all apps got, from the first question to the last answer, and each of them."""
    ready = Barrier(count + 1)

    def app(number: int) -> Answer:
        try:
            with Client(endpoint, name=f"app {number}") as client:
                client.ping()  # connected
                ready.wait(60)
                return question(client, QUESTIONS[number % len(QUESTIONS)], max_tokens, policy)
        except DraftdError:
            ready.abort()  # nobody need wait for it
            raise

    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(app, number) for number in range(count)]
        try:
            ready.wait(60)
        except BrokenBarrierError:
            for each in asked:
                if isinstance(error := each.exception(), DraftdError):  # what broke it
                    raise error from None
            raise
        began = perf_counter()
        answers = [each.result() for each in asked]
        seconds = perf_counter() - began
    speeds = [speed([answer]) for answer in answers]
    return {
        "throughput": sum(answer.tokens for answer in answers) / seconds,
        "fairness": jain(speeds),
        "fairness_whole": jain([answer.tokens / answer.seconds for answer in answers]),
        "speeds": speeds,
        "first_seconds": [answer.first_seconds for answer in answers],
        "seconds": [answer.seconds for answer in answers],
    }


def by_context(options: argparse.Namespace) -> Iterator[Row]:
    """One answer behind prompts of so many tokens."""
    text = " ".join(" ".join(each.read_text("utf-8").split()) for each in TEXTS)
    with (
        daemon(options, slots=1, context=max(options.contexts) + options.max_tokens + 64) as endpoint,
        Client(endpoint, name="scaling") as client,
    ):
        room = client.status().engine["context"] - options.max_tokens
        for length in options.contexts:
            given = prompt(client, text, min(length, room))
            if given == text:
                raise InvalidRequest(f"the documents that contexts are made of have no {length} tokens")
            asked = {length: partial(continued, client, given, options.max_tokens)}
            for policy, turns in in_turns(options.repeat, POLICIES, asked).items():
                answers = [answer for (answer,) in turns]
                yield {
                    "context": length,
                    "policy": policy,
                    "prompt_tokens": answers[0].prompt_tokens,
                    **medians(
                        [{"speed": speed([each]), "first_seconds": each.first_seconds} for each in answers]
                    ),
                    **counts(turns),
                }


def prompt(client: Client, text: str, tokens: int) -> str:
    """The beginning of a text that has so many tokens, or the next fewer that a cut of it has."""
    sizes = range(len(text) + 1)
    return text[: bisect_right(sizes, tokens, lo=1, key=lambda size: tokens_of(client, text[:size])) - 1]


def tokens_of(client: Client, text: str) -> int:
    """How many tokens a prompt has; more than any other if they leave no room for an answer.

    Of an answer that has ended the daemon computes nothing more: it says this alone.
    """
    try:
        return client.complete(prompt=text, resume={"finish_reason": "length"}).usage.prompt_tokens
    except ContextOverflow:
        return sys.maxsize


def by_length(options: argparse.Namespace) -> Iterator[Row]:
    """The model drafting fixed lengths, and the controller, over the same questions in turns."""
    policies = ["off", *(f"model:{length}" for length in options.lengths), "auto"]
    with daemon(options, slots=1) as endpoint, Client(endpoint, name="scaling") as client:
        asked = {
            number: partial(question, client, text, options.max_tokens)
            for number, text in enumerate(QUESTIONS[:4])
        }
        made = in_turns(options.repeat, policies, asked)
    alone = median(speed(turn) for turn in made["off"])
    for policy, turns in made.items():
        row = medians([{"speed": speed(turn), "tokens_a_pass": tokens_a_pass(turn)} for turn in turns])
        yield {"policy": policy, "speedup": row["speed"] / alone} | row | counts(turns)


def tokens_a_pass(answers: Sequence[Answer]) -> float:
    """Tokens that a pass of the target gave."""
    return sum(each.made for each in answers) / sum(each.stats.rounds for each in answers)


def by_cores(options: argparse.Namespace) -> Iterator[Row]:
    """A daemon of so many threads, one after the other."""
    for cores in range(1, machine.cores() + 1):
        if cores & (cores - 1) and cores != machine.cores():
            continue  # powers of two, and all there are
        with daemon(options, slots=1, threads=cores) as endpoint, Client(endpoint, name="scaling") as client:
            asked = {
                number: partial(question, client, text, options.max_tokens)
                for number, text in enumerate(QUESTIONS[:2], cores)
            }
            for policy, turns in in_turns(options.repeat, POLICIES, asked).items():
                yield {"cores": cores, "policy": policy} | medians([{"speed": speed(turn)} for turn in turns])


MEASURES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "apps": by_apps,
    "contexts": by_context,
    "lengths": by_length,
    "cores": by_cores,
}


if __name__ == "__main__":
    documents.run(main)
