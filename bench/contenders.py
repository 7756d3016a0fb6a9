"""What the comparisons of draftd with its peers share: options, the pair's files, requests, the daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import documents
import psutil
from peer_process import NO_FORM, Answer, Contender, leave_out, never_began, resident, spoken
from transformers import AutoTokenizer

from draftd.daemon import machine, tuned
from draftd.daemon.bench_files import Prompt
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.settings import Settings
from draftd.daemon.settings import load as load_settings
from draftd.daemon.timed import ask
from draftd.ipc import Client
from draftd.models.catalog import load_catalog
from draftd.models.convert import ensure_transformers
from draftd.models.fetch import ensure

OF_BACKEND = {
    "transformers": ("draftd_target", "hf_generate", "openvino_genai_"),
    "llama_cpp": ("draftd_target", "llama_server", "llama_python", "openvino_genai_"),
}
MODE_BYTES = 2.2  # what a peer's mode takes in memory over the size of the target's file, as measured


def parser(description: str | None, max_tokens: int) -> argparse.ArgumentParser:
    """The options that each comparison has; `max_tokens`: the default."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--pair", default="qwen2.5-coder")
    made.add_argument("--backend", choices=list(OF_BACKEND), default="transformers")
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--max-tokens", type=documents.count, default=max_tokens)
    made.add_argument("--threads", type=documents.count, default=machine.cores())
    made.add_argument("--context", type=documents.count, default=4096)
    made.add_argument("--only", nargs="+", help="only these contenders, by their full names")
    made.add_argument("--python", type=interpreter, action="append", default=[], metavar="PEER=PATH")
    made.add_argument("--int4", type=Path, help="directory with OpenVINO exports `target` and `draft`")
    made.add_argument("--json", type=documents.new_file, required=True)
    return made


def interpreter(text: str) -> tuple[str, str]:
    """An argument that names a peer and the Python that has its library."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text} is no PEER=PATH, as llama_server=/opt/peers/bin/python is")
    return name, path


def daemon_settings(options: argparse.Namespace) -> tuple[Settings, dict[str, str]]:
    """draftd's settings as the options have them, and the variables that give them to a daemon."""
    own = {name: getattr(options, name) for name in ("backend", "threads", "context")}
    variables = STEADY | {f"DRAFTD_{name.upper()}": str(value) for name, value in own.items()}
    return load_settings(None).model_copy(update=own), variables


def model_files(pair_name: str, settings: Settings) -> dict[str, str]:
    """The pair's files: as shipped for llama.cpp, converted for transformers, the draft as tuned here."""
    pair = load_catalog().pair(pair_name)
    if pair.draft is None:
        sys.exit(f"the pair {pair_name} has no draft to compare with")
    found = {}
    for part, model in (("target", pair.target), ("draft", pair.draft)):
        gguf = ensure(model, settings.cache_dir)
        found[f"{part}_gguf"] = str(gguf)
        found[part] = str(ensure_transformers(gguf, settings.cache_dir, settings.dtype))
    drafting = tuned.draft_file(pair, settings, settings.backend)
    if drafting is not None and str(drafting[0]) != found["draft_gguf"]:
        found["tuned_gguf"] = str(drafting[0])  # what draftd drafts with
    return found


def peer_settings(
    name: str, files: dict[str, str], options: argparse.Namespace, settings: Settings
) -> dict[str, Any]:
    """What a peer is told before it loads; `only`: the modes that it shall build, None for all."""
    begin = spoken(name) + " "
    only = None
    if options.only is not None:
        only = [each.removeprefix(begin) for each in options.only if each.startswith(begin)]
    own = ("backend", "threads", "context", "dtype", "device")
    more = {"pair": options.pair, "only": only} | {name: getattr(settings, name) for name in own}
    more["mode_bytes"] = int(MODE_BYTES * Path(files["target_gguf"]).stat().st_size)
    if options.int4:
        more |= {f"{part}_int4": str(options.int4 / part) for part in ("target", "draft")}
    return files | more


def requests(
    prompts: Sequence[Prompt], files: dict[str, str], max_tokens: int, temperature: float
) -> list[dict[str, Any]]:
    """Prompts as every peer takes them: the messages, and their text by the target's own template."""
    tokenizer = AutoTokenizer.from_pretrained(files["target"])
    made: list[dict[str, Any]] = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt.turns[0]}]
        made.append(
            {
                "messages": messages,
                "text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": 1,
            }
        )
    return made


@contextmanager
def draftd(pair: str, policies: list[str], variables: dict[str, str]) -> Iterator[list[Contender]]:
    """The daemon, once for each policy that a request can name."""
    with (
        private_daemon(pair, lambda status: None, variables=variables, cold=True) as endpoint,
        Client(endpoint, name="bench") as client,
    ):
        engine = psutil.Process(client.status().engine["pid"])
        pids = (engine.ppid(), engine.pid)  # the front starts the engine
        both = [resident(psutil.Process(pid)) for pid in pids]

        def memory() -> int:
            return sum(read() for read in both)

        def contender(policy: str) -> Contender:
            def answer(body: dict[str, Any]) -> Answer:
                fields = {key: value for key, value in body.items() if key != "text"}
                made = ask(client, speculate=policy, **fields)
                return {
                    "text": made.text,
                    "tokens": made.made,
                    "first_tokens": made.first_tokens,
                    "first_seconds": made.first_seconds,
                    "sentence_seconds": made.sentence_seconds,
                    "gaps": list(made.gaps),
                    "seconds": made.seconds,
                    "drafted": made.stats.drafted,
                    "accepted": made.stats.accepted,
                    "rounds": made.stats.rounds,
                }

            return Contender(f"draftd {policy}", answer, memory, pids)

        yield [contender(policy) for policy in policies]


def leave_out_unknown(only: Sequence[str] | None, known: Collection[str], missing: dict[str, str]) -> None:
    """What --only names and nobody offers is missing too."""
    for name in only or ():
        if name not in known and name not in missing and not never_began(name, missing):
            leave_out(name, f"{NO_FORM}: nothing of this name is offered", missing)
