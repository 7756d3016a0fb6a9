"""draftd beside its peers, in one run, in turns, on the same prompts, weights and threads.

    python bench/side_by_side.py --backend transformers --prompts FILE.jsonl --json OUT.json

Each peer of bench/peers/ is a process of its own; one whose library or model is missing is listed with the
reason. `--python PEER=PATH` names the interpreter that has a peer's library (`make bench-peers` makes it).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import documents
import energy
import psutil
from fair import STEADY, order
from peer_process import Answer, Contender, PeerFailed, leave_out, peer, resident, spoken
from transformers import AutoTokenizer

from draftd.daemon import machine, tuned
from draftd.daemon.bench_files import Prompt, read_prompts
from draftd.daemon.private import private_daemon
from draftd.daemon.settings import Settings
from draftd.daemon.settings import load as load_settings
from draftd.daemon.timed import ask
from draftd.ipc import Client
from draftd.ipc.errors import DraftdError
from draftd.models.catalog import load_catalog
from draftd.models.convert import ensure_transformers
from draftd.models.fetch import ensure

OF_BACKEND = {
    "transformers": ("hf_generate", "openvino_genai_"),
    "llama_cpp": ("llama_server", "llama_python", "openvino_genai_"),
}
POLICIES = ("off", "auto", "model:8", "suffix:8", "chain:8")
MODE_BYTES = 2.2  # what a peer's mode takes in memory over the size of the target's file, as measured


def main() -> None:
    options = arguments()
    prompts = read_prompts(options.prompts, options.per_category)
    pythons = dict(options.python)
    own = {name: getattr(options, name) for name in ("backend", "threads", "context")}
    settings = load_settings(None).model_copy(update=own)
    variables = STEADY | {f"DRAFTD_{name.upper()}": str(value) for name, value in own.items()}
    files = model_files(options.pair, settings)
    tokenizer = AutoTokenizer.from_pretrained(files["target"])
    requests = [request(prompt, tokenizer, options) for prompt in prompts]
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        contenders = stack.enter_context(draftd(options.pair, options.policies, variables))
        contenders = [each for each in contenders if not options.only or each.name in options.only]
        for name in OF_BACKEND[options.backend]:
            asked = peer_settings(name, files, options)
            if asked["only"] != []:
                python = pythons.get(name, sys.executable)
                contenders += stack.enter_context(peer(name, python, asked, missing))
        # The first passes of a process are slower than those that follow.
        contenders = [
            each for each in contenders if reply(each, requests[0] | {"max_tokens": 4}, missing) is not None
        ]
        for name in set(options.only or ()) - {each.name for each in contenders} - missing.keys():
            leave_out(name, "nothing of this name is offered", missing)
        if not contenders:
            sys.exit("nothing to compare: no contender is left")
        document: dict[str, Any] = documents.begin(
            "side by side",
            pair=options.pair,
            backend=options.backend,
            sampling={"max_tokens": options.max_tokens, "temperature": options.temperature, "seed": 1},
            threads=options.threads,
            repeat=options.repeat,
            asked=len(prompts),
            missing=missing,
            results=[],
        )
        for index, (prompt, body) in enumerate(zip(prompts, requests, strict=True)):
            document["results"] += measure(contenders, prompt, body, index, options.repeat, missing)
            # One that failed has no figures at all: those of fewer prompts would not compare.
            contenders = [each for each in contenders if each.name not in missing]
            document["results"] = [each for each in document["results"] if each["contender"] not in missing]
            document["memory_bytes"] = {each.name: each.memory() for each in contenders}
            # after each prompt: what was measured is kept if a later one fails
            options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
            print(f"{index + 1} of {len(prompts)}: {prompt.category}", file=sys.stderr, flush=True)
    print(f"written to {options.json}; python bench/report.py makes the page of it")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--backend", choices=list(OF_BACKEND), default="transformers")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--per-category", type=documents.count, default=1)
    parser.add_argument("--max-tokens", type=documents.count, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--repeat", type=documents.count, default=1, help="the median of so many answers counts"
    )
    parser.add_argument("--threads", type=documents.count, default=machine.cores())
    parser.add_argument("--context", type=documents.count, default=4096)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES), help="what draftd is asked to do")
    parser.add_argument("--only", nargs="*", help="only these contenders, by their full names")
    parser.add_argument("--python", type=interpreter, action="append", default=[], metavar="PEER=PATH")
    parser.add_argument("--int4", type=Path, help="directory with OpenVINO exports `target` and `draft`")
    parser.add_argument("--json", type=documents.new_file, required=True)
    return parser.parse_args()


def interpreter(text: str) -> tuple[str, str]:
    """An argument that names a peer and the Python that has its library."""
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text} is no PEER=PATH, as llama_server=/opt/peers/bin/python is")
    return name, path


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
    drafting = tuned.draft_file(pair, settings)
    if drafting is not None and str(drafting[0]) != found["draft_gguf"]:
        found["tuned_gguf"] = str(drafting[0])  # what draftd drafts with
    return found


def peer_settings(name: str, files: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """What a peer is told before it loads; `only`: the modes that it shall build, None for all."""
    begin = spoken(name) + " "
    only = None
    if options.only is not None:
        only = [each.removeprefix(begin) for each in options.only if each.startswith(begin)]
    more = {"threads": options.threads, "context": options.context, "only": only}
    more["mode_bytes"] = int(MODE_BYTES * Path(files["target_gguf"]).stat().st_size)
    if options.int4:
        more |= {f"{part}_int4": str(options.int4 / part) for part in ("target", "draft")}
    return files | more


def request(prompt: Prompt, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One request as every peer takes it: the messages, and their text by the target's own template."""
    messages = [{"role": "user", "content": prompt.turns[0]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {
        "messages": messages,
        "text": text,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": 1,
    }


@contextmanager
def draftd(pair: str, policies: list[str], variables: dict[str, str]) -> Iterator[list[Contender]]:
    """The daemon, once for each policy that a request can name."""
    with (
        private_daemon(pair, lambda status: None, variables=variables, cold=True) as endpoint,
        Client(endpoint, name="side by side") as client,
    ):
        engine = psutil.Process(client.status().engine["pid"])
        both = [resident(each) for each in (engine, engine.parent()) if each is not None]

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
                    "seconds": made.seconds,
                    "drafted": made.stats.drafted,
                    "accepted": made.stats.accepted,
                    "rounds": made.stats.rounds,
                }

            return Contender(f"draftd {policy}", answer, memory)

        yield [contender(policy) for policy in policies]


def measure(
    contenders: list[Contender],
    prompt: Prompt,
    body: dict[str, Any],
    index: int,
    repeat: int,
    missing: dict[str, str],
) -> list[dict[str, Any]]:
    """One prompt by every contender, in an order of each turn's own, so that drift cancels out.

    One that fails is `missing` from then on.
    """
    results = []
    for turn in range(repeat):
        for each in order(contenders, index, turn):
            before = energy.joules()
            answer = reply(each, body, missing)
            after = energy.joules()
            if answer is None:
                continue
            if before is not None and after is not None:
                answer["joules"] = after - before
            results.append(
                {
                    "question_id": str(prompt.question_id),
                    "category": prompt.category,
                    "contender": each.name,
                    "turn": turn,
                    "memory_bytes": each.memory(),
                    **answer,
                }
            )
    return results


def reply(contender: Contender, body: dict[str, Any], missing: dict[str, str]) -> Answer | None:
    """What a contender answers; None if it failed, now or before."""
    if contender.name in missing:
        return None
    try:
        return contender.ask(body)
    except (PeerFailed, DraftdError) as error:
        leave_out(contender.name, str(error), missing)
        return None


if __name__ == "__main__":
    documents.run(main)
