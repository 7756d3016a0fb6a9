"""`draftd bench --quality`: how good the answers are, not how fast, against references that come with draftd.

The target alone, with speculation, in its other forms (`bench_forms.py`: 16-bit weights in transformers,
4-bit and smaller ones in llama.cpp), and the draft alone: what a user would lose by simply running a smaller
model. All greedy.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from draftd.daemon import bench_forms, bench_scores, machine, tuned
from draftd.daemon.bench_forms import Form
from draftd.daemon.bench_scores import SPECULATION, TASKS, Item, Row, Said
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.settings import load
from draftd.ipc.client import Client
from draftd.ipc.errors import InvalidConfig, InvalidRequest, ModelNotFound, OutOfMemory
from draftd.ipc.messages import Done
from draftd.models.catalog import load_catalog

ALTERNATIVES = 20  # told of each token of the target alone: among them the other answer's is looked for
LIBRARIES = ("sacrebleu", "rouge_score")


def quality(
    pair: str | None,
    endpoint: str | None,
    config: Path | None,
    wanted: Sequence[str],
    per_task: int | None,
    max_tokens: int,
    write: Callable[[dict[str, Any]], None],
    console: Console,
    notes: Console,
) -> None:
    """Ask all, print the table; the document for --json is written after each form, lest an end lose all."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        names = ", ".join(missing).replace("_", "-")
        raise InvalidConfig(f"{names} is not installed: `pip install 'draftd[quality]'` brings it")
    items = read_items(per_task)
    settings = load(config)
    document = {
        "kind": "quality",
        "command": machine.command(),
        "machine": machine.describe(),
        "pair": pair or settings.pair,
        "dtype": settings.dtype,
        "items": {task: sum(item.task == task for item in items) for task in TASKS},
        "max_tokens": max_tokens,
    }
    said: dict[str, list[Said]] = {}
    rows: list[Row] = []
    lack: OutOfMemory | None = None  # of the last form left out
    with ExitStack() as stack:
        for form in forms(pair, endpoint, config, wanted, notes, stack):
            try:
                with (
                    daemon(form, endpoint, config, notes) as where,
                    Client(where, name="bench quality") as client,
                ):
                    serves = client.status().pair
                    if endpoint is not None and pair not in (None, serves):
                        raise ModelNotFound(f"the daemon serves {serves}, not {pair}")
                    engine = client.load().engine  # one that is idle has none
                    if endpoint is not None:  # its own, whatever is configured here
                        document |= {"pair": serves, "dtype": engine.get("dtype")}
                    label = form.name or f"{engine['backend']} {engine.get('dtype', '')}".strip()
                    for policy in form.policies:
                        name = label + SPECULATION * (policy != "off")
                        said[name] = ask_all(client, items, policy, max_tokens, name, notes)
            except OutOfMemory as error:
                if endpoint is not None:
                    raise
                lack = error
                notes.print(f"{form.name} is left out: {error.message}", highlight=False)
                continue
            rows = bench_scores.rows(items, said)
            texts = {
                name: {item.id: each.text for item, each in zip(items, answers, strict=True)}
                for name, answers in said.items()
            }
            write(document | {"rows": [asdict(row) for row in rows], "said": texts})
    if lack is not None and not rows:
        raise lack
    console.print(bench_scores.table(rows))
    for line in bench_scores.divergences(rows):
        console.print(line, highlight=False)


def read_items(per_task: int | None) -> list[Item]:
    """The questions and references that come with draftd."""
    found: list[Item] = []
    for task in TASKS:
        file = resources.files("draftd.daemon").joinpath("quality", f"{task}.jsonl")
        text = file.read_text("utf-8")
        found += [Item(**json.loads(line)) for line in text.splitlines()][:per_task]
    return found


def forms(
    pair: str | None,
    endpoint: str | None,
    config: Path | None,
    wanted: Sequence[str],
    notes: Console,
    stack: ExitStack,
) -> list[Form]:
    """What to ask, the reference first: a running daemon as it is, or each form of the pair's models."""
    if endpoint is not None:
        if wanted:
            raise InvalidRequest("--form chooses among daemons started here: leave out --endpoint")
        return [Form("", "")]
    settings = load(config)
    chosen = load_catalog().pair(pair or settings.pair)
    found, left_out = bench_forms.forms(
        chosen, settings, wanted, stack.enter_context(tuned.workdir(settings))
    )
    for line in left_out:
        notes.print(line, highlight=False)
    return found


@contextmanager
def daemon(form: Form, endpoint: str | None, config: Path | None, notes: Console) -> Iterator[str]:
    """The endpoint given, or that of a daemon started for this form; OutOfMemory if it does not fit."""
    if endpoint is not None:
        yield endpoint
        return
    with ExitStack() as stack:
        with notes.status(f"starting a daemon: {form.name}"):
            stack.enter_context(bench_forms.made(form))
            bench_forms.must_fit(form, load(config))
            where = stack.enter_context(
                private_daemon(form.pair, lambda status: None, config, STEADY | form.variables, cold=True)
            )
        yield where


def ask_all(
    client: Client, items: Sequence[Item], policy: str, max_tokens: int, name: str, notes: Console
) -> list[Said]:
    """Each item's greedy answer, the target's own with its nearest alternatives."""
    found = []
    with Progress(console=notes, transient=True) as progress:
        for item in progress.track(items, description=name):
            answer = Said()
            for event in client.generate(
                messages=[{"role": "user", "content": item.text}],
                max_tokens=max_tokens,
                speculate=policy,
                cache_prompt=False,
                logprobs=ALTERNATIVES if policy == "off" else None,
            ):
                if isinstance(event, Done):
                    answer.accepted = event.stats.accepted
                    break
                answer.text += event.text
                answer.tokens += event.tokens
                answer.tops += [{top.token: top.logprob for top in each.top} for each in event.logprobs]
            found.append(answer)
    return found
