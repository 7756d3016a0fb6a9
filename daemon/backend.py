"""`backend = "auto"`: transformers where CUDA is there, else the faster of the two as measured here.

The target's passes are measured once and kept; the choice is made at every start from them and the draft that
there is then, so a draft that was tuned in between is reckoned with.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draftd.daemon import machine, tuned
from draftd.daemon.settings import Settings
from draftd.models.base import Span, Target
from draftd.models.catalog import Pair
from draftd.models.digest import replace_text
from draftd.models.fetch import cached_path

log = logging.getLogger("draftd.engine")

DRAFTED = 8  # a typical round, used only to compare the two backends
ACCEPTANCE = 0.8  # of a draft that tuning has not measured
WARM = list(range(1, 33))  # any tokens will do

Report = Callable[[float, str], None]  # fraction done, what is being done
Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Passes = dict[int, Seconds]  # by rows


class Measured(BaseModel):
    """The file in the state directory."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[2] = 2
    targets: dict[str, dict[str, Passes]] = {}  # by file and machine, by backend
    drafts: dict[str, Seconds] = {}  # of a token, by file and machine


def choose_backend(pair: Pair, settings: Settings, threads: int, report: Report) -> str:
    """The backend for this pair here; what has to be measured (a minute) is kept in the state directory."""
    import torch

    if torch.cuda.is_available() and settings.device != "cpu":
        return "transformers"
    if pair.target.is_directory:
        return "transformers"
    path = settings.state_dir / "backend.json"
    measured = _read(path)
    before = measured.model_copy(deep=True)
    draft_seconds, acceptance = _draft(pair, settings, threads, measured)
    passes = _passes(pair, settings, threads, measured, report)
    if measured != before:
        try:
            settings.state_dir.mkdir(parents=True, exist_ok=True)
            replace_text(path, measured.model_dump_json(indent=1) + "\n")
        except OSError as error:
            log.warning("cannot keep what was measured in %s: %s", path, error.strerror)
    speeds = {name: expected_speed(each, draft_seconds, acceptance) for name, each in passes.items()}
    chosen = max(speeds, key=lambda backend: speeds[backend])
    log.info("backend auto: %s (%s tokens a second)", chosen, speeds)
    return chosen


def expected_speed(passes: Passes, draft_seconds: float, acceptance: float = ACCEPTANCE) -> float:
    """Tokens a second, of the better of a plain and a typical speculative round.

    `passes` is seconds by rows of a target pass; E(k) = (1 - a^(k+1)) / (1 - a) (Leviathan 2023, eq. 1).
    """
    tokens = sum(acceptance**accepted for accepted in range(DRAFTED + 1))
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


def _draft(pair: Pair, settings: Settings, threads: int, measured: Measured) -> tuple[float, float]:
    """Seconds of a drafted token and how often it is accepted, as tuning found or as a short look shows."""
    from draftd.daemon import loader

    if not settings.speculate:
        return 0.0, 0.0
    if (record := tuned.find(pair, settings)) is not None:
        return record.figure.milliseconds / 1000, record.figure.acceptance
    found = tuned.draft_file(pair, settings)
    if found is None:
        return 0.0, 0.0
    key = _key(found[0], threads, settings, version("llama_cpp_python"))
    if key not in measured.drafts:
        draft = loader.open_gguf(found[0], _small(settings), threads, lambda fraction: None)
        draft.forward([Span(0, 0, WARM, 1)])
        measured.drafts[key] = pass_seconds(draft, 1)
        draft.close()
    return measured.drafts[key], ACCEPTANCE


def _passes(
    pair: Pair, settings: Settings, threads: int, measured: Measured, report: Report
) -> dict[str, Passes]:
    from draftd.daemon import loader

    libraries = [version(name) for name in ("draftd", "torch", "llama_cpp_python")]
    key = _key(cached_path(pair.target, settings.cache_dir), threads, settings, settings.dtype, *libraries)
    if key in measured.targets:
        return measured.targets[key]
    passes: dict[str, Passes] = {}
    loaders = {"llama_cpp": loader.load_llama_cpp, "transformers": loader.load_transformers}
    for done, (backend, load) in enumerate(loaders.items()):
        report(done / 2, f"measuring {backend} once, to choose the backend")
        target, _ = load(pair.target, _small(settings), threads, lambda fraction, stage: None)
        target.forward([Span(0, 0, WARM, 1)])
        passes[backend] = {rows: pass_seconds(target, rows) for rows in (1, DRAFTED + 1)}
        target.close()
    measured.targets[key] = passes
    return passes


def _small(settings: Settings) -> Settings:
    return settings.model_copy(update={"context": 128, "slots": 1})


def _key(file: Path, threads: int, settings: Settings, *rest: str) -> str:
    gpu = [f"gpu_layers {settings.gpu_layers}"] if settings.gpu_layers else []
    return "/".join([file.name, str(file.stat().st_size), machine.cpu()[0], str(threads), *rest, *gpu])


def _read(path: Path) -> Measured:
    try:
        return Measured.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Measured()
    except OSError as error:
        log.warning("cannot read %s (%s): the backends are measured again", path, error.strerror)
        return Measured()
    except ValidationError:
        log.warning("%s is damaged or of another version: the backends are measured again", path)
        return Measured()
