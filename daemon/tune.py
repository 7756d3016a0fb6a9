"""A draft tuned to this machine: its weights in other types, measured, and the fastest kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftd.daemon import budget, loader, machine, tuned
from draftd.daemon.backend import WARM, choose_backend, pass_seconds
from draftd.daemon.settings import Settings
from draftd.daemon.tune_candidates import Candidate, plan, that_fit
from draftd.daemon.tune_figures import agreement, best_length, choose, first_choices, survival, token_seconds
from draftd.daemon.tuned import Figure, Record
from draftd.ipc.errors import InvalidRequest
from draftd.models import trim
from draftd.models.base import Span, Target, Tokenizer
from draftd.models.catalog import Pair
from draftd.models.digest import digest
from draftd.models.fetch import cached_path, need
from draftd.models.lending import between
from draftd.models.pair import PairReport, check_file

Say = Callable[[str], None]  # a line about what is being done

WIDTHS = (1, 2, 3, 5, 9, 13, 17, 25)
TOKENS = 1024  # of the calibration text at most
SHORTEST = 32
READ = 32  # tokens of the pass by which a draft's reading is timed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What tuning found, and sentences about what was not tried; no record: the target alone is as fast."""

    figures: list[Figure]
    record: Record | None
    skipped: list[str]
    missing: tuple[str, ...] = ()  # scripts whose tokens the draft lacks


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
            used = trim.scripts(text) | trim.of_locale()
            candidates, skipped = plan(pair, settings, backend, quick, workdir, used)
            for candidate in candidates:
                if candidate.origin is not None:
                    say(f"writing {candidate.source.name}, {candidate.types}")
                    candidate.write(threads)
            say(f"loading the target, {pair.target.name}")
            load = loader.load_transformers if backend == "transformers" else loader.load_llama_cpp
            target, tokenizer = load(pair.target, small, threads, lambda fraction, stage: None)
            try:
                reference = _read(target, tokenizer, text, say)
                candidates, crowded = that_fit(candidates)
                candidates, figures = _measure(candidates, reference, small, threads, 5 if quick else 12, say)
            finally:
                target.close()
            missing: tuple[str, ...] = ()
            chosen = choose(figures, None if pair.draft is None else 0)
            if chosen is None:
                record = None
                tuned.undo(pair.name, settings)
            else:
                if (trimmed := candidates[chosen].trimmed) is not None:
                    missing = trimmed.scripts
                record = _install(pair, settings, backend, candidates[chosen], figures, chosen)
                if (now := _backend(pair, settings, threads, say)) != backend:
                    say(f"with this draft {now} is expected to be faster than {backend}: it runs the target")
    return Outcome(figures, record, skipped + crowded, missing)


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


@dataclass(frozen=True, slots=True)
class _Opened:
    """A candidate that can draft here: where it agrees with the target, and its seconds to read a token."""

    candidate: Candidate
    model: Any
    agreed: NDArray[np.bool_]
    reading: float


def _measure(
    candidates: Sequence[Candidate],
    reference: _Reference,
    settings: Settings,
    threads: int,
    rounds: int,
    say: Say,
) -> tuple[list[Candidate], list[Figure]]:
    """Figures of those that can draft here."""
    models: list[Any] = []
    drafts: list[_Opened] = []
    try:
        reports: dict[tuple[str, bool], PairReport] = {}
        for candidate in candidates:
            say(f"reading with {candidate.source.name} {candidate.types}")
            model = loader.open_gguf(candidate.path, settings, threads, lambda fraction: None)
            models.append(model)
            kind = candidate.source.name, candidate.trimmed is not None
            if kind not in reports:
                widths = model.vocab, reference.target.vocab
                reports[kind] = check_file(candidate.path, reference.tokenizer, *widths, tuned.sample_text())
            report = reports[kind]
            if (reading := _reading(reference, model, report)) is None:
                say(f"{candidate.source.name} {candidate.types}: the target's keys are not this draft's")
                continue
            agreed = agreement(model, reference.tokens, reference.choices, report)
            drafts.append(_Opened(candidate, model, agreed, reading))
        say("timing the drafts and the target by turns")
        timed = [reference.target, *(draft.model for draft in drafts)]
        now, *seconds = token_seconds(timed, reference.tokens, rounds)
    finally:
        for model in models:
            model.close()
    # the target's times by rows as they would be now, beside the drafts'
    passes = {rows: each * now / reference.passes[1] for rows, each in reference.passes.items()}
    figures = []
    for draft, each in zip(drafts, seconds, strict=True):
        length, speedup = best_length(each, survival(draft.agreed), passes, draft.reading)
        figures.append(
            Figure(
                source=draft.candidate.source.name,
                types=draft.candidate.types,
                size=draft.candidate.path.stat().st_size,
                milliseconds=1000 * each,
                acceptance=float(draft.agreed.mean()),
                length=length,
                speedup=speedup,
            )
        )
    return [draft.candidate for draft in drafts], figures


def _reading(reference: _Reference, draft: Any, report: PairReport) -> float | None:
    """The seconds that a draft takes to read a token; none where the target lends what it has read.

    None for a trimmed draft that is lent nothing: it can't read what it has no tokens for.
    """
    tokens = ids = reference.tokens[:SHORTEST]
    if report.trimmed is not None:
        ids = report.trimmed.draft_ids(tokens)
    if (lender := between(reference.target, draft)) is not None:
        reference.target.forward([Span(0, 0, tokens, 1)])
        if lender.lend(0, ids) and lender.able:
            return 0.0
    if report.trimmed is not None:
        return None
    draft.forward([Span(0, 0, WARM, 1)])
    return pass_seconds(draft, READ) / READ


# ---- files


def _install(
    pair: Pair, settings: Settings, backend: str, chosen: Candidate, figures: list[Figure], index: int
) -> Record:
    source_sha256 = digest(cached_path(chosen.source, settings.cache_dir), settings.cache_dir)
    file = file_sha256 = None
    if chosen.origin is not None:
        types = "shipped" if chosen.recipe is None else chosen.recipe.name
        fewer = "" if chosen.trimmed is None else f"-{len(chosen.trimmed.kept)}"
        file = f"{pair.name}@{types}{fewer}-{source_sha256[:12]}.gguf"
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
