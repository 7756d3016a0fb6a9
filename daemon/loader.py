"""From a pair's name to a target, a tokenizer and a draft that fit together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftd.daemon import machine
from draftd.daemon.backend import choose_backend
from draftd.daemon.drafting import Drafting
from draftd.daemon.settings import Settings
from draftd.daemon.sources import make_drafting
from draftd.daemon.tuned import draft_file, find, keep_all_tokens, sample_text
from draftd.drafts.base import Draft
from draftd.ipc.errors import DraftdError, IncompatiblePair, ModelNotFound, UnsupportedModel
from draftd.models.base import Target, Tokenizer
from draftd.models.catalog import Model, load_catalog
from draftd.models.fetch import Progress, cached_path, ensure, is_here
from draftd.models.pair import PairReport, check_file

log = logging.getLogger("draftd.engine")

Report = Callable[[float, str], None]  # fraction done, what is being done


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pair ready to run; `info` says what it is, and why where no model drafts."""

    target: Target
    tokenizer: Tokenizer
    drafting: Drafting
    learnt_path: Path  # where what the controller learns is kept
    info: dict[str, Any]
    open_draft: Callable[[], Draft | None] | None = None  # opens the draft again after it was closed
    whole_draft: Callable[[], Draft | None] | None = None  # the same, from now on with all tokens


def load(settings: Settings, report: Report) -> Loaded:
    """Load the configured pair; DraftdError says what is wrong and what to do."""
    pair = load_catalog().pair(settings.pair)
    for model in pair.models:
        if model.path is None and not is_here(model, settings.cache_dir):
            raise ModelNotFound(f"{model.name} is not on this machine: run `draftd models pull {pair.name}`")
        ensure(model, settings.cache_dir)  # fetches nothing here: it says what is wrong with a local path
    threads = settings.threads or machine.cores()
    backend: str = settings.backend if settings.backend != "auto" else pair.backend
    if backend == "auto":
        backend = choose_backend(pair, settings, threads, part(report, 0.0, 0.3))
    if backend == "transformers":
        target, tokenizer = load_transformers(pair.target, settings, threads, part(report, 0.3, 0.8))
    else:
        target, tokenizer = load_llama_cpp(pair.target, settings, threads, part(report, 0.3, 0.8))
    info: dict[str, Any] = {
        "backend": backend,
        "target": pair.target.name,
        "draft": None,
        "context": target.context,
        "slots": target.slots,
        "threads": threads,
        "pid": os.getpid(),
    }
    if backend == "transformers":
        info["dtype"] = settings.dtype
    draft: Draft | None = None
    open_draft: Callable[[], Draft | None] | None = None
    whole_draft: Callable[[], Draft | None] | None = None
    found = draft_file(pair, settings, backend)
    if found is None:
        info["draft_refused"] = "the pair has no draft"
    elif not settings.speculate:
        info["draft_refused"] = "speculate = false"
    else:
        file, name = found
        if (record := find(pair, settings)) is not None and record.backend != backend:
            log.info("the draft was tuned for %s: `draftd models tune` may find a better one", record.backend)
        try:
            given = (tokenizer, target, settings, threads, part(report, 0.8, 1.0))
            draft, verdict = load_draft(file, *given)
            info["draft"], info["tokenizers"] = name, verdict.sentence

            def reopened() -> Draft | None:
                # tuning removes the file it replaces
                now, _ = draft_file(pair, settings, backend) or (file, name)
                return load_draft(now, *given)[0]

            def whole() -> Draft | None:
                try:
                    keep_all_tokens(pair, settings)
                except DraftdError as error:  # it can't be kept: some tokens are better than none
                    log.warning("the draft stays as it is: %s", error.message)
                return reopened()

            open_draft, whole_draft = reopened, whole if verdict.trimmed is not None else None
        except IncompatiblePair as error:
            info["draft_refused"] = error.message
            log.warning("the target runs alone: %s", error.message)
    drafting, path = make_drafting(draft, tokenizer, target, settings, info)
    return Loaded(target, tokenizer, drafting, path, info, open_draft, whole_draft)


def part(report: Report, begin: float, end: float) -> Report:
    """A report for one part of the work, as a share of the whole."""
    return lambda fraction, stage: report(begin + (end - begin) * fraction, stage)


def load_transformers(
    model: Model, settings: Settings, threads: int, report: Report
) -> tuple[Target, Tokenizer]:
    """The target in torch; a GGUF file is converted into the cache the first time."""
    from draftd.models.convert import ensure_transformers
    from draftd.models.hf_tokenizer import HfTokenizer
    from draftd.models.transformers import TransformersTarget

    def converting(progress: Progress) -> None:
        share = progress.done / progress.total if progress.total else 0.0
        report(0.5 * share, "converting the target, once")

    path = cached_path(model, settings.cache_dir)
    if not model.is_directory:
        path = ensure_transformers(path, settings.cache_dir, settings.dtype, converting)
    target = TransformersTarget.load(
        path,
        slots=settings.slots,
        context=settings.context,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        threads=threads,
        report=part(report, 0.5, 1.0),
    )
    return target, HfTokenizer.load(path)


def load_llama_cpp(
    model: Model, settings: Settings, threads: int, report: Report
) -> tuple[Target, Tokenizer]:
    """The target in llama.cpp."""
    import transformers.utils.chat_template_utils  # noqa: F401  # half a second that the first chat would wait

    from draftd.models.gguf_tokenizer import GGUFTokenizer

    path = gguf_path(model, settings)
    target = open_gguf(path, settings, threads, lambda fraction: report(fraction, "loading the target"))
    return target, GGUFTokenizer(path)


def load_draft(
    path: Path, tokenizer: Tokenizer, target: Target, settings: Settings, threads: int, report: Report
) -> tuple[Draft, PairReport]:
    """The draft, and how its tokens reach the target; IncompatiblePair if they can't."""
    from draftd.drafts.by_text import TextDraft
    from draftd.drafts.by_tokens import TokenDraft
    from draftd.drafts.llama_cpp import LlamaDraft
    from draftd.models import lending

    opened = open_gguf(path, settings, threads, lambda fraction: report(fraction, "loading the draft"))
    try:
        verdict = check_file(path, tokenizer, opened.vocab, target.vocab, sample_text())
    except IncompatiblePair:
        opened.close()
        raise
    lender = lending.between(target, opened)
    if verdict.trimmed is not None:
        return TokenDraft(LlamaDraft(opened, lender=lender), verdict.trimmed), verdict
    if verdict.translation is None:
        return LlamaDraft(opened, verdict.shared, lender), verdict
    log.info("%s: %s", path.name, verdict.sentence)
    kind = TokenDraft if verdict.by == "tokens" else TextDraft
    draft: Draft = kind(LlamaDraft(opened), verdict.translation)
    return draft, verdict


def gguf_path(model: Model, settings: Settings) -> Path:
    if model.is_directory:
        raise UnsupportedModel(f"{model.name} is a transformers directory: llama.cpp needs a GGUF file")
    return cached_path(model, settings.cache_dir)


def open_gguf(path: Path, settings: Settings, threads: int, report: Callable[[float], None]) -> Any:
    from draftd.models.llama_cpp import LlamaTarget
    from draftd.models.probe import extra_bufts_work

    return LlamaTarget.load(
        path,
        slots=settings.slots,
        context=settings.context,
        threads=threads,
        gpu_layers=settings.gpu_layers,
        extra_bufts=extra_bufts_work(settings.state_dir),
        report=report,
    )
