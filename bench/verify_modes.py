"""What coupling, token and block rejection accept of the same model's drafts.

python bench/verify_modes.py prompts.jsonl --pair qwen2.5-coder --temperature 0.8 --temperature 1.2
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import documents

from draftd.daemon.bench_files import read_prompts
from draftd.daemon.engine import Engine
from draftd.daemon.loader import load
from draftd.daemon.request import Request
from draftd.daemon.settings import load as load_settings
from draftd.models.rejection import Rejection
from draftd.models.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one mode's drafts at one temperature, all prompts together."""

    temperature: float
    verify: str
    drafted: int
    accepted: int
    rounds: int

    @property
    def line(self) -> str:
        """Its row of the table; a round gives what it accepted and one token of the target's own."""
        share = self.accepted / self.drafted if self.drafted else 0.0
        return (
            f"| {self.temperature:g} | {self.verify} | {self.accepted}/{self.drafted} | {share:.3f} "
            f"| {1 + self.accepted / self.rounds:.2f} |"
        )


TEMPERATURES = (0.8, 1.2)
HEAD = ("| temperature | verify | accepted | share | tokens a pass |", "|---|---|---|---|---|")


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
    settings = load_settings().model_copy(update={"pair": options.pair, "context": 1024})
    loaded = load(settings, lambda fraction, stage: None)
    questions = [loaded.tokenizer.chat([{"role": "user", "content": prompt.turns[0]}]) for prompt in prompts]
    document = documents.begin(
        "verify modes",
        pair=options.pair,
        backend=loaded.info["backend"],
        draft=loaded.info["draft"],
        prompts=len(questions),
        max_tokens=options.max_tokens,
        length=options.length,
    )
    made: list[Found] = []
    print(*HEAD, sep="\n", flush=True)
    for degree in options.temperature or TEMPERATURES:
        for how in ("coupled", *get_args(Rejection)[::-1]):
            engine = Engine(loaded.target, loaded.drafting)
            requests = [
                Request(
                    key=key,
                    tokens=list(question),
                    prompt=len(question),
                    end=len(question) + options.max_tokens,
                    sampling=Sampling(degree, seed=key),
                    stop_ids=loaded.tokenizer.stop_ids,
                    mode=("model", options.length),
                    verify=how,
                    reuse=False,
                )
                for key, question in enumerate(questions)
            ]
            for request in requests:
                engine.add(request)
            while engine.busy:
                engine.step()
            tallies = [request.tally for request in requests]
            made.append(
                Found(
                    degree,
                    how,
                    sum(tally.drafted for tally in tallies),
                    sum(tally.accepted for tally in tallies),
                    sum(tally.rounds for tally in tallies),
                )
            )
            print(made[-1].line, flush=True)
    if options.json:
        document["found"] = [asdict(each) for each in made]
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def lines(document: dict[str, Any]) -> list[str]:
    """The table of a report, and what was asked."""
    return [
        f"{document['prompts']} prompts, {document['max_tokens']} tokens each, up to {document['length']} "
        f"drafted a round by {document['draft']}; nothing is timed.",
        "",
        *HEAD,
        *(Found(**each).line for each in document["found"]),
    ]


if __name__ == "__main__":
    documents.run(main)
