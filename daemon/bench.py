"""`draftd bench`: the same prompts with and without speculation, through a real daemon, in one run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from draftd.daemon import bench_latency, bench_ping, bench_quality, bench_table, machine
from draftd.daemon.bench_files import Prompt, read_prompts, unwritable, write
from draftd.daemon.bench_table import Measured, Result
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.settings import load
from draftd.daemon.timed import Answer, ask
from draftd.ipc.client import Client
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.messages import Status
from draftd.models.catalog import load_catalog
from draftd.models.fetch import need

POLICY = r"auto|(suffix|model|chain):[0-9]{1,2}"
OF_SPEEDS = ("prompts", "temperature", "seed", "speculate", "again", "repeat", "ping")  # --quality heeds none


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int
    temperature: float
    seed: int


def bench(
    context: typer.Context,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines, each with question_id, category and turns (Spec-Bench's form)."),
    ] = None,
    pair: Annotated[
        str | None, typer.Option(help="The pair to measure; default: the configured one.")
    ] = None,
    quality: Annotated[
        bool,
        typer.Option(
            "--quality",
            help="Instead of speeds: how good the answers are, of target, quantised target and draft alone.",
        ),
    ] = False,
    form: Annotated[
        list[str] | None,
        typer.Option(
            help="With --quality, ask only this: transformers, llama_cpp, Q4_0, Q3_K_M, Q2_K or draft; "
            "may be repeated."
        ),
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(min=1, help="Only the first N prompts of each category.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The seed of every request.")] = 1,
    speculate: Annotated[
        list[str] | None,
        typer.Option(
            help="auto (default) or a source with a length, as model:4, to compare; may be repeated."
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also measure each prompt asked a second time.")
    ] = False,
    repeat: Annotated[
        int, typer.Option(min=1, help="Ask everything N times and take each prompt's median.")
    ] = 1,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write every measurement and the machine to this file.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="A running daemon to measure; default: start one and end it.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="The started daemon's configuration file.")] = None,
    ping: Annotated[int, typer.Option(min=0, help="Also compare N pings with a bare ZeroMQ ping-pong.")] = 0,
) -> None:
    """Measure what speculation gains: every prompt with and without it, in turns, in one run.

    A category that loses is printed as it is.
    """
    if json_out is not None and (fault := unwritable(json_out)):
        raise InvalidRequest(f"--json: {fault}")
    if quality and (given := _given(context, OF_SPEEDS)):
        raise InvalidRequest(f"--quality asks its own questions, greedily and once: leave out {given}")
    if not quality and _given(context, ("form",)):
        raise InvalidRequest("--form says what --quality asks: give --quality too, or leave it out")
    console, notes = Console(), Console(stderr=True)
    if quality:
        bench_quality.quality(
            pair,
            endpoint,
            config,
            form or [],
            per_category,
            max_tokens,
            lambda made: write(json_out, made),
            console,
            notes,
        )
        return
    if prompts is None:
        raise InvalidRequest("say which prompts: --prompts FILE.jsonl (or --quality, which brings its own)")
    chosen = read_prompts(prompts, per_category)
    policies = list(dict.fromkeys(speculate or ["auto"]))
    if wrong := [policy for policy in policies if not re.fullmatch(POLICY, policy)]:
        raise InvalidRequest(
            f"--speculate {wrong[0]}: give auto, or suffix, model or chain with a length: model:4"
        )
    policies += ["again"] * again
    sampling = Sampling(max_tokens, temperature, seed)
    # A name of its own: what this run is answered is drafted for this run alone.
    with (
        _daemon(endpoint, pair, config, notes) as address,
        Client(address, name=f"bench {os.getpid()}") as client,
    ):
        status = client.load(model=pair)  # one that is idle has no engine to tell of
        measured = measure(client, pair, chosen, policies, repeat, sampling, notes)
        pings = bench_ping.measure(address, ping) if ping else None
    by_policy = {policy: bench_table.results(measured, policy) for policy in policies}
    results = by_policy[policies[0]]
    console.print(bench_table.table(results))
    if len(policies) > 1:
        console.print(bench_table.policies_table(by_policy))
    latencies = bench_latency.latencies(measured)
    console.print(bench_latency.table(latencies))
    for line in summary(results, pings):
        console.print(line, highlight=False)
    more = {"latency": latencies, "plain_ranges": bench_table.plain_ranges(measured)}
    write(json_out, document(status, sampling, by_policy, repeat, pings) | more)


def _given(context: typer.Context, names: Sequence[str]) -> str:
    """Those of these options that the command line has; a default is not given."""
    sources = [(name, context.get_parameter_source(name)) for name in names]
    found = [f"--{name}" for name, source in sources if source is not None and source.name == "COMMANDLINE"]
    return ", ".join(found)


def measure(
    client: Client,
    pair: str | None,
    prompts: list[Prompt],
    policies: list[str],
    repeat: int,
    sampling: Sampling,
    notes: Console,
) -> list[Measured]:
    """Every prompt by every policy and without speculation; who is first goes round, so drift cancels out."""
    names = [*policies, "off"]
    for name in names:  # the first passes of a process are slower than those that follow
        _ask(client, pair, prompts[0].turns[0], Sampling(8, 0.0, 1), name)
    measured = []
    with Progress(console=notes, transient=True) as progress:
        task = progress.add_task("measuring", total=len(prompts) * repeat)
        for index, prompt in enumerate(prompts):
            progress.update(task, description=prompt.category)
            answers: dict[str, list[Answer]] = {name: [] for name in names}
            for turn in range(repeat):
                first = (index + turn) % len(names)
                for name in names[first:] + names[:first]:
                    answers[name].append(_ask(client, pair, prompt.turns[0], sampling, name))
                progress.advance(task)
            measured.append(Measured(str(prompt.question_id), prompt.category, answers))
    return measured


def _ask(client: Client, pair: str | None, text: str, sampling: Sampling, policy: str) -> Answer:
    request = {"messages": [{"role": "user", "content": text}], "model": pair, **asdict(sampling)}
    if policy != "again":
        return ask(client, speculate=policy, **request)
    ask(client, anew=False, **request)
    return ask(client, anew=False, **request)


def summary(results: list[Result], pings: bench_ping.PingReport | None) -> list[str]:
    same = sum(result.same_text for result in results)
    lines = [
        f"same text with and without drafting: {same} of {len(results)} prompts"
        + ("" if same == len(results) else " (16-bit arithmetic may flip near ties)"),
        f"beside the time of the two models: {bench_table.engine_overhead(results):.1%} in the engine, "
        f"{bench_table.whole_overhead(results):.1%} with queues, sockets and client",
    ]
    if pings is not None:
        lines.append(
            f"ping over {pings.count}: median {pings.daemon_median * 1e6:.0f} µs, "
            f"p99 {pings.daemon_p99 * 1e6:.0f} µs; bare ZeroMQ: median {pings.bare_median * 1e6:.0f} µs, "
            f"p99 {pings.bare_p99 * 1e6:.0f} µs; ratio of the medians {pings.ratio:.2f}; "
            f"bare Unix socket: median {pings.unix_median * 1e6:.0f} µs, p99 {pings.unix_p99 * 1e6:.0f} µs"
        )
    return lines


def document(
    status: Status,
    sampling: Sampling,
    by_policy: dict[str, list[Result]],
    repeat: int,
    pings: bench_ping.PingReport | None,
) -> dict[str, Any]:
    """Everything, for --json: what was run, on what, each answer's numbers, and the sums.

    The sums at the top are those of the first policy; all policies' speed-ups are under `policies`.
    """
    results = next(iter(by_policy.values()))
    rows = bench_table.by_category(results)
    return {
        "command": machine.command(),
        "machine": machine.describe(),
        "pair": status.pair,
        "engine": status.engine,
        "sampling": asdict(sampling),
        "repeat": repeat,
        "policies": {
            policy: _finite({line.name: line.speedup for line in bench_table.by_category(each)})
            for policy, each in by_policy.items()
        },
        "categories": [_finite(asdict(line) | {"speedup": line.speedup}) for line in rows],
        **_finite(
            {
                "geometric_mean_speedup": bench_table.geometric_mean(line.speedup for line in rows),
                "engine_overhead": bench_table.engine_overhead(results),
                "whole_overhead": bench_table.whole_overhead(results),
            }
        ),
        "ping": asdict(pings) | {"ratio": pings.ratio} if pings is not None else None,
        "results": [
            {
                "question_id": result.question,
                "category": result.category,
                "drafted": _raw(result.drafted),
                "plain": _raw(result.plain),
            }
            for result in results
        ],
    }


def _raw(answer: Answer) -> dict[str, Any]:
    return asdict(answer) | {"stats": answer.stats.model_dump()}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no nan: null says that there was nothing to measure."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in values.items()
    }


@contextmanager
def _daemon(endpoint: str | None, pair: str | None, config: Path | None, notes: Console) -> Iterator[str]:
    """The endpoint given, or that of a daemon started for this run, steady and without anything learnt.

    ModelNotFound: there is no such pair, or it is not on this machine.
    """
    if endpoint is not None:
        yield endpoint
        return
    settings = load(config)
    chosen = load_catalog().pair(pair or settings.pair)
    need(chosen, settings.cache_dir)
    with ExitStack() as stack:
        with notes.status("starting a daemon") as shown:
            address = stack.enter_context(
                private_daemon(
                    chosen.name, lambda status: shown.update(status.detail), config, STEADY, cold=True
                )
            )
        yield address
