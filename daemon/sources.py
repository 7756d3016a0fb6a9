"""What drafts for a loaded target: the model, the suffix history, and the controller that knows them."""

from __future__ import annotations

import hashlib
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from draftd.daemon import learnt, machine
from draftd.daemon.backend import WARM, pass_seconds
from draftd.daemon.controller import Controller
from draftd.daemon.costs import Costs
from draftd.daemon.drafting import Drafting
from draftd.daemon.plan import Source
from draftd.daemon.settings import Settings
from draftd.drafts.base import Context, Draft
from draftd.drafts.suffix import SuffixDraft
from draftd.drafts.suffix_store import SuffixStore
from draftd.models.base import Span, Target, Tokenizer

WIDTHS = (1, 2, 4, 8, 16)  # rows of the passes that a first start measures
STEPS, TURNS = 4, 4  # tokens drafted at once, and how often; the first time takes longer than all others


def make_drafting(
    draft: Draft | None, tokenizer: Tokenizer, target: Target, settings: Settings, info: dict[str, object]
) -> tuple[Drafting, Path]:
    """The drafting for a target, and the file in which the controller's knowledge is kept."""
    suffix = None
    sources: list[Source] = ["model"] if draft is not None else []
    if settings.speculate:  # a request's own text drafts without a history too
        vocabulary = f"{info['target']} {tokenizer.size}"
        store = SuffixStore(settings.state_dir, hashlib.sha256(vocabulary.encode()).hexdigest())
        suffix = SuffixDraft(store if settings.history else None)
        sources.append("suffix")
    path = learnt.file_path(settings.state_dir, _key(info, settings))
    known = learnt.load(path)
    controller = Controller(sources, settings.draft_length, known, even=target.even, padded=target.padded)
    if sources and not controller.target.observed:  # nor in the file, where that was cleared
        _measure(target, controller)
    if draft is not None:
        _measure_draft(draft, controller)
    return Drafting(draft, suffix, controller, remembers=settings.history), path


def _key(info: dict[str, object], settings: Settings) -> str:
    """Costs and acceptance hold for these models, run like this, on this machine."""
    parts = [str(info.get(name)) for name in ("backend", "target", "draft", "dtype", "threads")]
    parts += [machine.cpu()[0], version("torch"), version("llama_cpp_python")]
    places = settings.model_dump(include={"device", "device_map", "gpu_layers"}, exclude_defaults=True)
    parts += [f"{name} {value}" for name, value in sorted(places.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _measure(target: Target, controller: Controller) -> None:
    """Time passes of a few widths, so that the first request is already drafted for by measured costs."""
    target.forward([Span(0, 0, WARM, 1)])
    for rows in WIDTHS:
        seconds = pass_seconds(target, rows)
        for _ in range(2):  # a median of several is worth two passes, before which none is believed
            controller.took(rows, seconds)
    target.truncate(0, 0)


def _measure_draft(draft: Draft, controller: Controller) -> None:
    """The same for the draft, at each start: what looked too slow on a busy machine is not tried again.

    A draft's first, slow passes would decide likewise whether there is a second.
    """
    controller.draft = Costs(level=0.1 * controller.target.seconds(1), slope=0.2)
    tokens = list(WARM)
    for turn in range(TURNS):
        began = time.perf_counter()
        (made,) = draft.propose([Context(0, tokens, STEPS, _likeliest, lambda _: True)])
        if turn and made.tokens:
            controller.draft.observe(1, (time.perf_counter() - began) / len(made.tokens))
        tokens += made.tokens
    for _ in range(2):
        draft.forget(0)
        began = time.perf_counter()
        # `prepare` would read nothing that the target is going to lend
        draft.propose([Context(0, WARM, 1, _likeliest, lambda _: False)])
        controller.draft.observe(len(WARM), time.perf_counter() - began)
    draft.forget(0)


def _likeliest(row: NDArray[np.float32], position: int) -> tuple[int, float]:
    return int(row.argmax()), 1.0
