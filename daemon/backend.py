"""`backend = "auto"`: transformers where CUDA is there, else the faster of the two as measured here."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from draftd.daemon import machine
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import draft_file
from draftd.models.base import Span, Target
from draftd.models.catalog import Pair
from draftd.models.digest import replace_text

log = logging.getLogger("draftd.engine")

DRAFTED = 8  # a typical round, used only to compare the two backends
ACCEPTANCE = 0.8
WARM = list(range(1, 33))  # any tokens will do


def choose_backend(pair: Pair, settings: Settings, threads: int, report: Callable[[float, str], None]) -> str:
    """The backend for this pair here; the measurement (a minute) is kept in the state directory."""
    import torch

    if torch.cuda.is_available() and settings.device != "cpu":
        return "transformers"
    if pair.target.is_directory:
        return "transformers"
    key = "/".join(
        [
            pair.name,
            machine.cpu()[0],
            str(threads),
            settings.dtype,
            version("torch"),
            version("llama_cpp_python"),
        ]
    )
    path = settings.state_dir / "backend.json"
    measured: dict[str, Any] = _read(path)
    if key not in measured:
        measured[key] = _measure(pair, settings, threads, report)
        settings.state_dir.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(measured, indent=1))
    speeds: dict[str, float] = measured[key]
    chosen = max(speeds, key=lambda backend: speeds[backend])
    log.info("backend auto: %s (%s tokens a second)", chosen, speeds)
    return chosen


def expected_speed(passes: dict[int, float], draft_seconds: float) -> float:
    """Tokens a second, of the better of a plain and a typical speculative round (FIELD.md, cost model).

    `passes` is seconds by rows of a target pass; E(k) = (1 - a^(k+1)) / (1 - a) (Leviathan 2023, eq. 1).
    """
    tokens = (1 - ACCEPTANCE ** (DRAFTED + 1)) / (1 - ACCEPTANCE)
    speculative = tokens / (passes[DRAFTED + 1] + DRAFTED * draft_seconds)
    return max(1 / passes[1], speculative)


def pass_seconds(target: Target, rows: int) -> float:
    """The median time of a pass that checks this many rows behind a short context."""
    times = []
    for _ in range(4):
        target.truncate(0, len(WARM))
        began = time.perf_counter()
        target.forward([Span(0, len(WARM), WARM[:rows], rows)])
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _measure(
    pair: Pair, settings: Settings, threads: int, report: Callable[[float, str], None]
) -> dict[str, float]:
    from draftd.daemon import loader

    small = settings.model_copy(update={"context": 128, "slots": 1})
    draft_seconds = 0.0
    if (found := draft_file(pair, settings)) is not None:
        draft = loader.open_gguf(found[0], small, threads, lambda fraction: None)
        draft.forward([Span(0, 0, WARM, 1)])
        draft_seconds = pass_seconds(draft, 1)
        draft.close()
    speeds = {}
    loaders = {"llama_cpp": loader.load_llama_cpp, "transformers": loader.load_transformers}
    for done, (backend, load) in enumerate(loaders.items()):
        report(done / 2, f"measuring {backend} once, to choose the backend")
        target, _ = load(pair.target, small, threads, lambda fraction, stage: None)
        target.forward([Span(0, 0, WARM, 1)])
        passes = {rows: pass_seconds(target, rows) for rows in (1, DRAFTED + 1)}
        target.close()
        speeds[backend] = expected_speed(passes, draft_seconds)
    return speeds


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("%s is damaged and is measured again", path)
        return {}
    return found if isinstance(found, dict) else {}
