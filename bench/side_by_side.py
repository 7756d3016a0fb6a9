"""draftd beside its peers, in one run, in turns, on the same prompts, weights and threads.

    python bench/side_by_side.py --backend transformers --prompts FILE.jsonl --json OUT.json

Each peer of bench/peers/ is a process of its own; one whose library or model is missing is listed with the
reason. `--python PEER=PATH` names the interpreter that has a peer's library (`make bench-peers` makes it).
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any

import documents
import energy
from contenders import (
    OF_BACKEND,
    daemon_settings,
    draftd,
    leave_out_unknown,
    model_files,
    parser,
    peer_settings,
    requests,
)
from fair import order
from peer_process import Answer, Contender, PeerFailed, leave_out, peer, spoken

from draftd.daemon.bench_files import Prompt, read_prompts, write
from draftd.ipc.errors import DraftdError

# draftd alone, the controller, and the fixed policies among which the best is told in hindsight
POLICIES = ("off", "auto", "model:2", "model:4", "model:8", "suffix:4", "suffix:8", "chain:8")


def main() -> None:
    options = arguments()
    prompts = read_prompts(options.prompts, options.per_category)
    pythons = dict(options.python)
    settings, variables = daemon_settings(options)
    files = model_files(options.pair, settings)
    bodies = requests(prompts, files, options.max_tokens, options.temperature)
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    with ExitStack() as stack:
        policies = [each for each in options.policies if not options.only or f"draftd {each}" in options.only]
        contenders: list[Contender] = []
        if policies:  # else there is no daemon to start
            contenders += stack.enter_context(draftd(options.pair, policies, variables))
        for name in OF_BACKEND[options.backend]:
            asked = peer_settings(name, files, options, settings)
            if asked["only"] != []:
                found = stack.enter_context(peer(name, pythons.get(name, sys.executable), asked, missing))
                contenders += found.contenders
                if found.version:
                    versions[spoken(name)] = found.version
        # The first passes of a process are slower than those that follow.
        contenders = [
            each for each in contenders if reply(each, bodies[0] | {"max_tokens": 4}, missing) is not None
        ]
        leave_out_unknown(options.only, [each.name for each in contenders], missing)
        if not contenders:
            sys.exit("nothing to compare: no contender is left")
        document: dict[str, Any] = documents.begin(
            "side by side",
            pair=options.pair,
            backend=options.backend,
            sampling={"max_tokens": options.max_tokens, "temperature": options.temperature, "seed": 1},
            threads=options.threads,
            context=options.context,
            repeat=options.repeat,
            prompts=options.prompts.name,
            asked=len(prompts),
            part=options.part,
            versions=versions,
            missing=missing,
            results=[],
        )
        for index, (prompt, body) in enumerate(zip(prompts, bodies, strict=True)):
            document["results"] += measure(contenders, prompt, body, index, options.repeat, missing)
            # One that failed has no figures at all: those of fewer prompts would not compare.
            contenders = [each for each in contenders if each.name not in missing]
            document["results"] = [each for each in document["results"] if each["contender"] not in missing]
            document["memory_bytes"] = {each.name: each.memory() for each in contenders}
            # after each prompt: what was measured is kept if a later one fails
            write(options.json, document)
            print(f"{index + 1} of {len(prompts)}: {prompt.category}", file=sys.stderr, flush=True)
    print(f"written to {options.json}; python bench/report.py makes the page of it")


def arguments() -> argparse.Namespace:
    made = parser(__doc__, max_tokens=64)
    made.add_argument("--per-category", type=documents.count, default=1)
    made.add_argument("--temperature", type=float, default=0.0)
    made.add_argument(
        "--repeat", type=documents.count, default=1, help="the median of so many answers counts"
    )
    made.add_argument(
        "--part",
        type=documents.count,
        help="of a comparison whose forms do not fit in memory together: each part is a run and a section",
    )
    made.add_argument("--policies", nargs="*", default=list(POLICIES), help="what draftd is asked to do")
    return made.parse_args()


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
