"""A draft tuned to this machine: its weights in other types, measured, and the fastest kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftd.daemon import budget, loader, machine, readings, tuned
from draftd.daemon.backend import WARM, choose_backend, pass_seconds
from draftd.daemon.settings import Settings
from draftd.daemon.tune_figures import agreement, best_length, choose, first_choices, survival, token_seconds
from draftd.daemon.tuned import SHIPPED, Figure, Record
from draftd.ipc.errors import InvalidRequest
from draftd.models.base import Span, Target, Tokenizer
from draftd.models.catalog import Model, Pair
from draftd.models.digest import digest
from draftd.models.fetch import cached_path, need
from draftd.models.gguf_tensors import read_tensors
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.lending import between
from draftd.models.pair import PairReport, check_pair
from draftd.models.quantize import RECIPES, Recipe, check_room, expected_bytes, quantize, unfit

Say = Callable[[str], None]  # a line about what is being done

QUICK = ("Q4_0", "Q4_0+Q8_0")  # the recipes that won wherever we measured
ITSELF = ("Q4_0", "Q4_0+Q8_0", "Q4_K+Q6_K")  # of the target: it should take less than it does as it is
WIDTHS = (1, 2, 3, 5, 9, 13, 17, 25)
TOKENS = 1024  # of the calibration text at most
SHORTEST = 32
READ = 32  # tokens of the pass by which a draft's reading is timed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could draft; `recipe` is None for one that is here already."""

    source: Model
    recipe: Recipe | None
    path: Path

    @property
    def types(self) -> str:
        return SHIPPED if self.recipe is None else self.recipe.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What tuning found, and sentences about what was not tried; no record: the target alone is as fast."""

    figures: list[Figure]
    record: Record | None
    skipped: list[str]


def tune(pair: Pair, settings: Settings, text: str, quick: bool, say: Say) -> Outcome:
    """Make candidates, measure them beside each other, install the best and keep what was measured.

    Raises ModelNotFound, CorruptModel, IncompatiblePair, InvalidRequest (the text is too short), DiskFull,
    OutOfMemory (no backend fits; where only one does, that one is measured).
    """
    need(pair, settings.cache_dir)
    threads = settings.threads or machine.cores()
    small = settings.model_copy(update={"context": TOKENS, "slots": 1})
    if settings.check_memory:
        small = budget.check(pair, small, budget.measure_room(small))
        settings = settings.model_copy(update={"backend": small.backend})
    with tuned.alone(pair.name, settings, say):
        backend = _backend(pair, settings, threads, say)
        with tuned.workdir(settings) as workdir:
            candidates, skipped = plan(pair, settings, backend, quick, workdir)
            for candidate in candidates:
                if candidate.recipe is not None:
                    say(f"writing {candidate.source.name} as {candidate.types}")
                    source = cached_path(candidate.source, settings.cache_dir)
                    quantize(source, candidate.path, candidate.recipe, threads)
            say(f"loading the target, {pair.target.name}")
            load = loader.load_transformers if backend == "transformers" else loader.load_llama_cpp
            target, tokenizer = load(pair.target, small, threads, lambda fraction, stage: None)
            try:
                reference = _read(target, tokenizer, text, say)
                candidates, crowded = _that_fit(candidates)
                figures = _measure(candidates, reference, small, threads, 5 if quick else 12, say)
            finally:
                target.close()
            chosen = choose(figures, None if pair.draft is None else 0)
            if chosen is None:
                record = None
                tuned.undo(pair.name, settings)
            else:
                record = _install(pair, settings, backend, candidates[chosen], figures, chosen)
                if (now := _backend(pair, settings, threads, say)) != backend:
                    say(f"with this draft {now} is expected to be faster than {backend}: it runs the target")
    return Outcome(figures, record, skipped + crowded)


# ---- the candidates


def plan(
    pair: Pair, settings: Settings, backend: str, quick: bool, workdir: Path
) -> tuple[list[Candidate], list[str]]:
    """The candidates, the draft as it came first, and sentences about those left out. Writes nothing yet.

    Raises DiskFull if the disk can't take them all.
    """
    candidates: list[Candidate] = []
    skipped: list[str] = []
    sources = [] if pair.draft is None else [pair.draft]
    if reason := _no_self_draft(pair, settings, backend):
        skipped.append(f"no self-draft: {reason}")
    else:
        sources.append(pair.target)
    needed = 0
    for source in sources:
        path = cached_path(source, settings.cache_dir)
        tensors = read_tensors(path)
        candidates.append(Candidate(source, None, path))
        names = QUICK if quick else tuple(recipe.name for recipe in RECIPES)
        if tuned.is_itself(source.name, pair):  # in a hurry as it is, if there is another draft
            names = () if quick and pair.draft is not None else ITSELF
        for recipe in RECIPES:
            if recipe.name not in names:
                continue
            if reason := unfit(tensors, recipe):
                skipped.append(f"{source.name} as {recipe.name}: {reason}")
                continue
            needed += expected_bytes(tensors, recipe)
            made = workdir / f"{source.name}-{recipe.name}.gguf"
            candidates.append(Candidate(source, recipe, made))
    check_room(workdir, needed)
    return candidates, skipped


def _no_self_draft(pair: Pair, settings: Settings, backend: str) -> str:
    if pair.target.is_directory:
        return "the target is no GGUF file"
    if pair.draft is not None and _file(pair.draft, settings) == _file(pair.target, settings):
        return "the pair's draft is made from the target's file already"
    if backend == "llama_cpp":
        return "the target runs from the same file, as fast as it could draft"
    return ""


def _file(model: Model, settings: Settings) -> Path:
    return cached_path(model, settings.cache_dir).resolve()


def _that_fit(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Those that fit the memory together, since they are measured by turns."""
    room = 0.7 * readings.memory_room()[0]
    fit: list[Candidate] = []
    crowded = []
    for candidate in candidates:
        room -= 1.2 * candidate.path.stat().st_size
        if room > 0 or not fit:
            fit.append(candidate)
        else:
            crowded.append(f"{candidate.source.name} as {candidate.types}: too little memory to measure it")
    return fit, crowded


# ---- measuring


@dataclass(frozen=True, slots=True)
class _Reference:
    """The target and what it says of the text."""

    target: Target
    tokenizer: Tokenizer
    tokens: list[int]
    choices: NDArray[np.int64]  # [tokens]: the target's first choice behind each
    passes: dict[int, float]  # seconds by rows


def _backend(pair: Pair, settings: Settings, threads: int, say: Say) -> str:
    """What the daemon would run the target with."""
    backend: str = settings.backend if settings.backend != "auto" else pair.backend
    if backend != "auto":
        return backend
    return choose_backend(pair, settings, threads, lambda fraction, stage: say(stage))


def _read(target: Target, tokenizer: Tokenizer, text: str, say: Say) -> _Reference:
    tokens = tokenizer.encode(text)[: target.context - WIDTHS[-1]]
    if len(tokens) < SHORTEST:
        raise InvalidRequest(
            f"the calibration text has {len(tokens)} tokens: give at least {SHORTEST}, better {TOKENS}"
        )
    say(f"reading {len(tokens)} tokens with the target")
    choices = first_choices(target, tokens, target.vocab)
    say("timing the target")
    passes = {rows: pass_seconds(target, rows) for rows in WIDTHS}
    return _Reference(target, tokenizer, tokens, choices, passes)


def _measure(
    candidates: Sequence[Candidate],
    reference: _Reference,
    settings: Settings,
    threads: int,
    rounds: int,
    say: Say,
) -> list[Figure]:
    opened: list[Any] = []
    try:
        agreements, reads = [], []
        reports: dict[str, PairReport] = {}
        for candidate in candidates:
            say(f"reading with {candidate.source.name} {candidate.types}")
            model = loader.open_gguf(candidate.path, settings, threads, lambda fraction: None)
            opened.append(model)
            name = candidate.source.name
            if name not in reports:
                tokenizers = GGUFTokenizer(candidate.path), reference.tokenizer
                widths = model.vocab, reference.target.vocab
                reports[name] = check_pair(*tokenizers, *widths, tuned.sample_text())
            agreements.append(agreement(model, reference.tokens, reference.choices, reports[name]))
            reads.append(_reading(reference, model))
        say("timing the drafts and the target by turns")
        now, *seconds = token_seconds([reference.target, *opened], reference.tokens, rounds)
    finally:
        for model in opened:
            model.close()
    # the target's times by rows as they would be now, beside the drafts'
    passes = {rows: each * now / reference.passes[1] for rows, each in reference.passes.items()}
    figures = []
    for candidate, each, agreed, reading in zip(candidates, seconds, agreements, reads, strict=True):
        length, speedup = best_length(each, survival(agreed), passes, reading)
        figures.append(
            Figure(
                source=candidate.source.name,
                types=candidate.types,
                size=candidate.path.stat().st_size,
                milliseconds=1000 * each,
                acceptance=float(agreed.mean()),
                length=length,
                speedup=speedup,
            )
        )
    return figures


def _reading(reference: _Reference, draft: Any) -> float:
    """The seconds that a draft takes to read a token; none where the target lends what it has read."""
    tokens = reference.tokens[:SHORTEST]
    if (lender := between(reference.target, draft)) is not None:
        reference.target.forward([Span(0, 0, tokens, 1)])
        lender.lend(0, tokens)
        if lender.able:
            return 0.0
    draft.forward([Span(0, 0, WARM, 1)])
    return pass_seconds(draft, READ) / READ


# ---- files


def _install(
    pair: Pair, settings: Settings, backend: str, chosen: Candidate, figures: list[Figure], index: int
) -> Record:
    source_sha256 = digest(cached_path(chosen.source, settings.cache_dir), settings.cache_dir)
    file = file_sha256 = None
    if chosen.recipe is not None:
        file = f"{pair.name}@{chosen.types}-{source_sha256[:12]}.gguf"
        path = tuned.directory(settings) / file
        chosen.path.replace(path)
        file_sha256 = digest(path, settings.cache_dir, fresh=True)
    record = Record(
        pair=pair.name,
        machine=tuned.machine(settings),
        backend=backend,
        chosen=index,
        source_sha256=source_sha256,
        file=file,
        file_sha256=file_sha256,
        figures=figures,
    )
    tuned.write(record, settings)
    kept = {tuned.record_path(pair.name, settings), *([tuned.directory(settings) / file] if file else [])}
    for old in set(tuned.files(pair.name, settings)) - kept:
        old.unlink()
    return record
