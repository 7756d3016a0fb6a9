"""What coupling, token and block rejection accept of the same model's drafts.

python bench/verify_modes.py prompts.jsonl --pair qwen2.5-coder --temperature 0.8 --temperature 1.2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import documents
from tables import table

from draftd.daemon.bench_files import read_prompts, write
from draftd.daemon.engine import Engine
from draftd.daemon.loader import load
from draftd.daemon.request import Request, Tally, Verify
from draftd.daemon.settings import load as load_settings
from draftd.models.rejection import Rejection
from draftd.models.sampling import Sampling


@dataclass(slots=True)
class Found:
    """What became of one mode's drafts at one temperature, all prompts together."""

    temperature: float
    verify: Verify
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0

    def add(self, tally: Tally) -> None:
        """Count one prompt's answer."""
        self.drafted += tally.drafted
        self.accepted += tally.accepted
        self.rounds += tally.rounds

    @property
    def cells(self) -> list[str]:
        """Its row of the table; a round gives what it accepted and one token of the target's own."""
        share = self.accepted / self.drafted if self.drafted else 0.0
        return [
            f"{self.temperature:g}",
            self.verify,
            f"{self.accepted}/{self.drafted}",
            f"{share:.3f}",
            f"{1 + self.accepted / self.rounds:.2f}",
        ]


TEMPERATURES = (0.8, 1.2)
MODES: tuple[Verify, ...] = ("coupled", *get_args(Rejection)[::-1])
HEADS = ("temperature", "verify", "accepted", "share", "tokens a pass")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--temperature", type=float, action="append", help="0.8 and 1.2 by default")
    parser.add_argument("--per-category", type=documents.count, default=1)
    parser.add_argument("--length", type=documents.count, default=5, help="drafted tokens a round")
    parser.add_argument("--max-tokens", type=documents.count, default=64)
    parser.add_argument("--json", type=documents.new_file)
    options = parser.parse_args()
    prompts = read_prompts(options.prompts, options.per_category)
    found = [Found(degree, how) for degree in options.temperature or TEMPERATURES for how in MODES]
    with ExitStack() as stack:
        settings = load_settings().model_copy(update={"pair": options.pair, "history": False})
        loaded = load(settings, lambda fraction, stage: None)
        stack.callback(loaded.target.close)
        stack.callback(loaded.drafting.set_model, None)
        engine = Engine(loaded.target, loaded.drafting)
        document = documents.begin(
            "verify modes",
            pair=options.pair,
            backend=loaded.info["backend"],
            draft=loaded.info["draft"],
            asked=len(prompts),
            max_tokens=options.max_tokens,
            length=options.length,
        )
        for number, prompt in enumerate(prompts):
            question = loaded.tokenizer.chat([{"role": "user", "content": prompt.turns[0]}])
            requests = [
                Request(
                    key=key,
                    tokens=list(question),
                    prompt=len(question),
                    end=len(question) + options.max_tokens,
                    sampling=Sampling(each.temperature, seed=number),
                    stop_ids=loaded.tokenizer.stop_ids,
                    mode=("model", options.length),
                    verify=each.verify,
                )
                for key, each in enumerate(found)
            ]
            answer(engine, requests)
            for each, request in zip(found, requests, strict=True):
                each.add(request.tally)
            document |= {"prompts": number + 1, "found": [asdict(each) for each in found]}
            write(options.json, document)  # after each prompt: what was asked is kept if a later one fails
            documents.tell(f"{number + 1} of {len(prompts)}: {prompt.category}")
    print(*lines(document), sep="\n")


def answer(engine: Engine, requests: Sequence[Request]) -> None:
    """One prompt in all modes at once, as many as there are slots: the first computes it for all."""
    for request in requests:
        engine.add(request)
    while engine.busy:
        engine.step()


def lines(document: dict[str, Any]) -> list[str]:
    """The table of a report, and what was asked."""
    count = document["prompts"]
    return [
        f"{documents.ended(document, count)}{count} prompts, {document['max_tokens']} tokens each, up to "
        f"{document['length']} drafted a round by {document['draft']}; nothing is timed.",
        "",
        *table(HEADS, [Found(**each).cells for each in document["found"]]),
    ]


if __name__ == "__main__":
    documents.run(main)
