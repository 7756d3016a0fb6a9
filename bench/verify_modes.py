"""What coupling, token and block rejection accept of the same model's drafts: the table of architecture.md.

python bench/verify_modes.py prompts.jsonl --pair qwen2.5-coder --temperature 0.8 --temperature 1.2
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from draftd.daemon.bench import read_prompts
from draftd.daemon.engine import Engine
from draftd.daemon.loader import load
from draftd.daemon.request import Request
from draftd.daemon.settings import load as load_settings
from draftd.models.rejection import Rejection
from draftd.models.sampling import Sampling


def main(
    prompts: Path,
    pair: Annotated[str, typer.Option()] = "qwen2.5-coder",
    temperature: Annotated[list[float], typer.Option()] = [0.8, 1.2],  # noqa: B006 - typer copies it
    per_category: Annotated[int, typer.Option()] = 1,
    length: Annotated[int, typer.Option(help="Drafted tokens a round.")] = 5,
    max_tokens: Annotated[int, typer.Option()] = 64,
) -> None:
    """Print each mode's share of accepted drafts and its tokens a pass; nothing is timed."""
    settings = load_settings().model_copy(update={"pair": pair, "context": 1024})
    loaded = load(settings, lambda fraction, stage: None)
    questions = [
        loaded.tokenizer.chat([{"role": "user", "content": prompt.turns[0]}])
        for prompt in read_prompts(prompts, per_category)
    ]
    print(f"{pair}, {loaded.info['backend']}, draft {loaded.info['draft']}, {len(questions)} prompts,")
    print(f"{max_tokens} tokens each, {length} drafted a round\n")
    print("| temperature | verify | accepted | tokens a pass |\n|---|---|---|---|", flush=True)
    for degree in temperature:
        for how in ("coupled", *get_args(Rejection)[::-1]):
            engine = Engine(loaded.target, loaded.drafting)
            requests = [
                Request(
                    key=key,
                    tokens=list(question),
                    prompt=len(question),
                    end=len(question) + max_tokens,
                    sampling=Sampling(degree, seed=key),
                    stop_ids=loaded.tokenizer.stop_ids,
                    mode=("model", length),
                    verify=how,
                    reuse=False,
                )
                for key, question in enumerate(questions)
            ]
            for request in requests:
                engine.add(request)
            while engine.busy:
                engine.step()
            drafted = sum(request.tally.drafted for request in requests)
            accepted = sum(request.tally.accepted for request in requests)
            rounds = sum(request.tally.rounds for request in requests)
            print(
                f"| {degree:g} | {how} | {accepted / drafted:.3f} | {1 + accepted / rounds:.2f} |", flush=True
            )


if __name__ == "__main__":
    typer.run(main)
