"""`draftd bench --quality`: how good the answers are, not how fast, against references that come with draftd.

The target alone, with speculation, in its other form (4-bit weights in llama.cpp, 16-bit ones in
transformers), and the draft alone: what a user would lose by simply running the small model. All greedy.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from draftd.daemon import bench_scores, machine
from draftd.daemon.bench_scores import SPECULATION, TASKS, Item, Said
from draftd.daemon.private import private_daemon
from draftd.daemon.settings import load
from draftd.ipc.client import Client
from draftd.ipc.errors import InvalidConfig
from draftd.ipc.messages import Done
from draftd.models.catalog import Pair, load_catalog, user_catalog_path

ALTERNATIVES = 20  # told of each token of the target alone: among them the other answer's is looked for
LIBRARIES = ("sacrebleu", "rouge_score")


@dataclass(frozen=True, slots=True)
class Variant:
    """One daemon to ask: which pair, with which variables; the first policy is that of the target alone."""

    name: str
    pair: str
    policies: tuple[str, ...] = ("off", "auto")
    variables: dict[str, str] = field(default_factory=dict)


def quality(
    pair: str | None,
    endpoint: str | None,
    config: Path | None,
    per_task: int | None,
    max_tokens: int,
    console: Console,
    notes: Console,
) -> dict[str, Any]:
    """Ask all, print the table; the document for --json."""
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        names = ", ".join(missing).replace("_", "-")
        raise InvalidConfig(f"{names} is not installed: `pip install 'draftd[quality]'` brings it")
    items = read_items(per_task)
    said: dict[str, list[Said]] = {}
    with ExitStack() as stack:
        for variant, address in daemons(pair, endpoint, config, stack):
            with (
                daemon(variant, address, config, notes) as where,
                Client(where, name="bench quality") as client,
            ):
                engine = client.status().engine
                label = variant.name or f"{engine['backend']} {engine.get('dtype', '')}".strip()
                for policy in variant.policies:
                    name = label + SPECULATION * (policy != "off")
                    said[name] = ask_all(client, items, policy, max_tokens, name, notes)
    rows = bench_scores.rows(items, said)
    console.print(bench_scores.table(rows))
    for line in bench_scores.divergences(rows):
        console.print(line, highlight=False)
    return {
        "kind": "quality",
        "command": machine.command(),
        "machine": machine.describe(),
        "pair": pair or load(config).pair,
        "dtype": load(config).dtype,
        "items": {task: sum(item.task == task for item in items) for task in TASKS},
        "max_tokens": max_tokens,
        "rows": [asdict(row) for row in rows],
        "said": {
            name: {item.id: each.text for item, each in zip(items, answers, strict=True)}
            for name, answers in said.items()
        },
    }


def read_items(per_task: int | None) -> list[Item]:
    """The questions and references that come with draftd."""
    found: list[Item] = []
    for task in TASKS:
        file = resources.files("draftd.daemon").joinpath("quality", f"{task}.jsonl")
        text = file.read_text("utf-8")
        found += [Item(**json.loads(line)) for line in text.splitlines()][:per_task]
    return found


def daemons(
    pair: str | None, endpoint: str | None, config: Path | None, stack: ExitStack
) -> list[tuple[Variant, str | None]]:
    """What to ask, the reference first: a running daemon alone, or each form of the pair's models."""
    if endpoint is not None:
        return [(Variant("", ""), endpoint)]
    settings = load(config)
    chosen = load_catalog().pair(pair or settings.pair)
    label = f"transformers {settings.dtype}"
    found = [Variant(label, chosen.name, variables={"DRAFTD_BACKEND": "transformers"})]
    if not chosen.target.is_directory:
        found.append(Variant("llama.cpp", chosen.name, variables={"DRAFTD_BACKEND": "llama_cpp"}))
    if chosen.draft is not None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="draftd-")))
        name, catalog = draft_alone(chosen, folder)
        found.append(
            Variant(
                "draft alone",
                name,
                ("off",),
                {"DRAFTD_CATALOG": str(catalog), "DRAFTD_BACKEND": "llama_cpp"},
            )
        )
    return [(variant, None) for variant in found]


def draft_alone(pair: Pair, folder: Path) -> tuple[str, Path]:
    """A pair whose target is the draft, in a catalog that has the user's own models, too."""
    assert pair.draft is not None
    name = f"{pair.name}-draft-alone"
    own = user_catalog_path()
    text = own.read_text("utf-8") if own.exists() else ""
    catalog = folder / "catalog.toml"
    entry = f"\n[pairs.{json.dumps(name)}]\ntarget = {json.dumps(pair.draft.name)}\n"
    catalog.write_text(f'{text}{entry}backend = "llama_cpp"\n', "utf-8")
    return name, catalog


@contextmanager
def daemon(variant: Variant, address: str | None, config: Path | None, notes: Console) -> Iterator[str]:
    """The endpoint given, or that of a daemon started for this variant."""
    if address is not None:
        yield address
        return
    with ExitStack() as stack:
        with notes.status(f"starting a daemon: {variant.name}"):
            where = stack.enter_context(
                private_daemon(variant.pair, lambda status: None, config, variant.variables)
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
                    break
                answer.text += event.text
                answer.tokens += event.tokens
                answer.tops += [{top.token: top.logprob for top in each.top} for each in event.logprobs]
            found.append(answer)
    return found
