"""`draftd bench`: the same prompts with and without speculation, through a real daemon, in one run."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.progress import Progress

from draftd.daemon import bench_ping, bench_table, machine
from draftd.daemon.bench_table import Result
from draftd.daemon.private import private_daemon
from draftd.daemon.settings import load
from draftd.daemon.timed import Answer, ask
from draftd.ipc.client import Client
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.messages import Status, explain


class Prompt(BaseModel):
    """A line of the prompts file; of several turns the first is asked."""

    question_id: int | str
    category: str = Field(min_length=1)
    turns: list[str] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int
    temperature: float
    seed: int


def bench(
    prompts: Annotated[
        Path, typer.Option(help="JSON lines, each with question_id, category and turns (Spec-Bench's form).")
    ],
    pair: Annotated[
        str | None, typer.Option(help="The pair to measure; default: the configured one.")
    ] = None,
    per_category: Annotated[
        int | None, typer.Option(min=1, help="Only the first N prompts of each category.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="The seed of every request.")] = 1,
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
    chosen = read_prompts(prompts, per_category)
    if json_out is not None and not json_out.absolute().parent.is_dir():
        raise InvalidRequest(f"--json {json_out}: there is no directory {json_out.absolute().parent}")
    sampling = Sampling(max_tokens, temperature, seed)
    console, notes = Console(), Console(stderr=True)
    with _daemon(endpoint, pair, config, notes) as address, Client(address) as client:
        status = client.status()
        results = measure(client, pair, chosen, sampling, notes)
        pings = bench_ping.measure(address, ping) if ping else None
    console.print(bench_table.table(results))
    for line in summary(results, pings):
        console.print(line, highlight=False)
    if json_out is not None:
        report = document(status, sampling, results, pings)
        json_out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_prompts(path: Path, per_category: int | None) -> list[Prompt]:
    """The file's prompts, in its order; InvalidRequest names the file and the line that is wrong."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidRequest(f"cannot read the prompts file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"the prompts file {path} is not UTF-8 text") from None
    found: list[Prompt] = []
    count: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = Prompt.model_validate_json(line)
        except ValidationError as error:
            raise InvalidRequest(f"{path} line {number}: {explain(error)}") from None
        count[prompt.category] = count.get(prompt.category, 0) + 1
        if per_category is None or count[prompt.category] <= per_category:
            found.append(prompt)
    if not found:
        raise InvalidRequest(f"the prompts file {path} holds no prompt")
    return found


def measure(
    client: Client, pair: str | None, prompts: list[Prompt], sampling: Sampling, notes: Console
) -> list[Result]:
    """Every prompt with and without speculation; which comes first alternates, so that drift cancels out."""
    for speculate in (True, False):  # the first passes of a process are slower than those that follow
        _ask(client, pair, prompts[0].turns[0], Sampling(8, 0.0, 1), speculate)
    results = []
    with Progress(console=notes, transient=True) as progress:
        task = progress.add_task("measuring", total=len(prompts))
        for index, prompt in enumerate(prompts):
            progress.update(task, description=prompt.category)
            answers = {
                speculate: _ask(client, pair, prompt.turns[0], sampling, speculate)
                for speculate in ((True, False) if index % 2 == 0 else (False, True))
            }
            results.append(Result(str(prompt.question_id), prompt.category, answers[True], answers[False]))
            progress.advance(task)
    return results


def _ask(client: Client, pair: str | None, text: str, sampling: Sampling, speculate: bool) -> Answer:
    question = [{"role": "user", "content": text}]
    return ask(client, messages=question, model=pair, speculate=speculate, **asdict(sampling))


def summary(results: list[Result], pings: bench_ping.PingReport | None) -> list[str]:
    same = sum(result.plain.text == result.drafted.text for result in results)
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
            f"p99 {pings.bare_p99 * 1e6:.0f} µs; ratio of the medians {pings.ratio:.2f}"
        )
    return lines


def document(
    status: Status, sampling: Sampling, results: list[Result], pings: bench_ping.PingReport | None
) -> dict[str, Any]:
    """Everything, for --json: what was run, on what, each answer's numbers, and the sums."""
    rows = bench_table.by_category(results)
    return {
        "command": shlex.join(["draftd", *sys.argv[1:]]),
        "machine": machine.describe(),
        "pair": status.pair,
        "engine": status.engine,
        "sampling": asdict(sampling),
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
    """The endpoint given, or that of a daemon started for this run."""
    if endpoint is not None:
        yield endpoint
        return
    with ExitStack() as stack:
        with notes.status("starting a daemon") as shown:
            address = stack.enter_context(
                private_daemon(pair or load(config).pair, lambda status: shown.update(status.detail), config)
            )
        yield address
