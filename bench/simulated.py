"""What bench/simulated_gpu.py and simulated_apps.py have in common: options, recording, table of inputs."""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import documents
import recording
from places import PLACES, Place
from recording import Answer, Opened
from tables import table

from draftd.daemon import loader
from draftd.daemon.bench_files import read_prompts
from draftd.daemon.control import Mode
from draftd.daemon.settings import load as load_settings
from draftd.drafts.base import Draft

HEADS = (
    *("simulated place", "a pass is of", "pass ms", "row ms", "drafted token ms", "read ms"),
    "draft's are of",
)


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--pair", default="qwen2.5-coder")
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--per-category", type=documents.count, default=1)
    made.add_argument("--max-tokens", type=documents.count, default=96)
    made.add_argument("--places", type=int, nargs="+", choices=range(1, len(PLACES) + 1), metavar="N")
    made.add_argument(
        "--recording", type=documents.new_file, help="kept there, and taken from there the next time"
    )
    made.add_argument("--json", type=documents.new_file, required=True)
    return made


def chosen(options: argparse.Namespace) -> list[Place]:
    """The places that are wanted, all unless some are named."""
    return [PLACES[number - 1] for number in options.places or range(1, len(PLACES) + 1)]


@contextmanager
def recorded(options: argparse.Namespace, slots: int = 1) -> Iterator[tuple[str, list[Answer], Opened]]:
    """The models, their answers of two tokens and more, and the draft for what they lack, opened if asked.

    From the recording's file, or made now and kept there; so is, at the end, what the draft was asked.
    """
    asked = f"{options.prompts.name}, {options.per_category} x {options.max_tokens} tokens"
    title = f"{options.pair}, {asked}, confidences by group"
    if options.recording and options.recording.exists():
        models, answers = recording.load(options.recording, title)
    else:
        models, answers = record(options)
        if options.recording:
            recording.save(options.recording, title, models, answers)
    replayed = [answer for answer in answers if len(answer.rows) > 1]  # timed is what follows the first token
    if not replayed:
        raise SystemExit("no answer has a second token, where the timing begins: raise --max-tokens")
    known = sum(len(answer.drafted) for answer in answers)
    try:
        yield models, replayed, functools.cache(lambda: open_draft(options.pair, models, slots))
    finally:
        if options.recording and sum(len(answer.drafted) for answer in answers) > known:
            recording.save(options.recording, title, models, answers)


def record(options: argparse.Namespace) -> tuple[str, list[Answer]]:
    """What the pair's models are, and each prompt's answer by its own target."""
    loaded = load(options.pair)
    answers = []
    for prompt in read_prompts(options.prompts, options.per_category):
        tokens = loaded.tokenizer.chat([{"role": "user", "content": prompt.turns[0]}])
        given = (loaded.target, prompt.category, tokens, options.max_tokens, loaded.tokenizer.stop_ids)
        began = perf_counter()
        answers.append(recording.record(*given))
        print(
            f"[{perf_counter() - began:.0f} s] recorded {prompt.category}: {len(tokens)} tokens of prompt, "
            f"{len(answers[-1].rows)} of answer",
            flush=True,
        )
    loaded.target.close()
    if loaded.drafting.model is not None:
        loaded.drafting.model.close()
    return named(loaded), answers


def load(pair: str, slots: int = 1) -> loader.Loaded:
    own = {"pair": pair, "slots": slots, "context": 4096, "backend": "llama_cpp", "history": False}
    with tempfile.TemporaryDirectory() as state:
        settings = load_settings(None).model_copy(update=own | {"state_dir": Path(state)})
        return loader.load(settings, lambda fraction, stage: None)


def open_draft(pair: str, models: str, slots: int) -> Draft:
    """The pair's draft, if it is the one that the recording is of."""
    loaded = load(pair, slots)
    loaded.target.close()
    if loaded.drafting.model is None:
        raise SystemExit(f"the pair {pair} has no draft here: {loaded.info.get('draft_refused')}")
    if (here := named(loaded)) != models:
        raise SystemExit(f"the recording is of {models}; here it would be {here}: name another file")
    return loaded.drafting.model


def named(loaded: loader.Loaded) -> str:
    return f"target {loaded.info['target']}, draft {loaded.info['draft']}"


def policy(mode: Mode) -> str:
    """How tables name it."""
    return mode if isinstance(mode, str) else f"{mode[0]}:{mode[1]}"


def begin(
    kind: str, options: argparse.Namespace, models: str, answers: Sequence[Answer], **more: Any
) -> dict[str, Any]:
    """A document of what is simulated: the places with their inputs, and the answers that are replayed."""
    return documents.begin(
        kind,
        pair=options.pair,
        models=models,
        inputs=[asdict(place) for place in chosen(options)],
        answers=[[each.category, len(each.rows)] for each in answers],
        **more,
    )


def inputs(document: dict[str, Any]) -> list[str]:
    """What is real and what is not, and the table of the inputs, in Markdown."""
    count = sum(length for _, length in document["answers"])
    rows = []
    for place in document["inputs"]:
        basis = {"measured": "published"}.get(place["basis"], place["basis"])  # an older file's word
        cells = [place["name"], f"{basis}: {place['source']}", f"{place['pass_ms']:.1f}"]
        cells += [f"{place[name]:.2f}" for name in ("row_ms", "draft_ms", "read_ms")]
        rows.append([*cells, place["drafting"]])
    return [
        f"**SIMULATED.** The logits of {document['pair']}'s target ({len(document['answers'])} answers, "
        f"{count} tokens; {document['models']}) and the choices of its draft are real and were recorded; "
        "the times of a pass and of a drafted token are inputs. No such machine was at hand, and acceptance "
        "is that of the small pair. The simulated engine ends each answer at its recorded length and drafts "
        "nothing behind that end, as the daemon drafts nothing behind a token that would end an answer. "
        "Our own code takes the processor's time that it takes on this machine.",
        "",
        *table(HEADS, rows),
        "",
        "Row ms: each row that a pass checks beyond the first; read ms: each token more that the draft reads "
        "at once.",
    ]
