"""Which file drafts for a pair: the one its draft came in, or one that was tuned to this machine."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from draftd.daemon.machine import cores, cpu, package_version
from draftd.daemon.settings import Settings
from draftd.models.catalog import Model, Pair
from draftd.models.digest import digest, replace_text
from draftd.models.download import writing
from draftd.models.fetch import cached_path, exclusive

log = logging.getLogger("draftd.engine")

SHIPPED = "as shipped"
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Kept):
    """What was measured of one candidate."""

    source: str  # the model it was made from
    types: str  # its recipe's name, or SHIPPED
    size: int = Field(gt=0)  # bytes
    milliseconds: Positive  # a token
    acceptance: float = Field(ge=0.0, le=1.0)
    length: int = Field(ge=1)  # drafted tokens a round that are expected to be fastest
    speedup: Positive  # over the target alone, then


class Record(_Kept):
    """The draft that was chosen for a pair here, and from what."""

    version: Literal[1] = 1
    pair: str
    machine: str
    backend: str
    chosen: int = Field(ge=0)  # among the figures
    source_sha256: str
    file: str | None = Field(pattern=r"^[A-Za-z0-9][\w.+@-]*$")  # None: the source as it is
    file_sha256: str | None
    figures: list[Figure] = Field(min_length=1)

    @property
    def figure(self) -> Figure:
        return self.figures[self.chosen]


def sample_text() -> str:
    """The calibration text that comes with draftd: prose, code, a table, a question and its answer."""
    return resources.files("draftd.daemon").joinpath("tuning_text.md").read_text("utf-8")


def draft_file(pair: Pair, settings: Settings, backend: str = "") -> tuple[Path, str] | None:
    """The draft's file and what to call it; None if the pair has no draft.

    `backend`: what runs the target. In llama.cpp the target does not draft for itself, whatever was tuned.
    """
    if (record := find(pair, settings)) is not None and not (
        backend == "llama_cpp" and is_itself(record.figure.source, pair)
    ):
        name = record.figure.source
        if record.file is not None:
            return directory(settings) / record.file, f"{name} (tuned: {record.figure.types})"
        return cached_path(_source(pair, name), settings.cache_dir), name
    if pair.draft is None:
        return None
    return cached_path(pair.draft, settings.cache_dir), pair.draft.name


def is_itself(source: str, pair: Pair) -> bool:
    """Is a draft made from this model the target itself, and not the pair's own draft?"""
    return source == pair.target.name and pair.draft != pair.target


def find(pair: Pair, settings: Settings) -> Record | None:
    """The pair's record if it holds here and now; a warning says why one is ignored."""
    path = record_path(pair.name, settings)
    try:
        record = Record.model_validate_json(path.read_bytes())
        wrong = _wrong(record, pair, settings)
    except FileNotFoundError:
        return None
    except OSError as error:
        wrong = f"it can't be read ({error.strerror})"
    except ValidationError:
        wrong = "it is damaged or of another version"
    if not wrong:
        return record
    log.warning(
        "%s is ignored: %s; `draftd models tune --pair %s` tunes the draft again", path, wrong, pair.name
    )
    return None


def directory(settings: Settings) -> Path:
    return settings.cache_dir / "tuned"


@contextmanager
def workdir(settings: Settings) -> Iterator[Path]:
    """A directory for files that are measured, removed behind; so is what killed processes left in theirs."""
    root = directory(settings)
    root.mkdir(parents=True, exist_ok=True)
    for old in root.glob(".candidates-*"):
        if not psutil.pid_exists(int(old.name.rpartition("-")[2])):
            shutil.rmtree(old)
    made = root / f".candidates-{os.getpid()}"
    made.mkdir(exist_ok=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def record_path(pair: str, settings: Settings) -> Path:
    return directory(settings) / f"{pair}.json"


def files(pair: str, settings: Settings) -> list[Path]:
    """All that tuning this pair left: its record and the files made for it."""
    made = directory(settings).glob(f"{pair}@*.gguf")  # no pair's name has an @
    return sorted(path for path in (record_path(pair, settings), *made) if path.exists())


def undo(pair: str, settings: Settings) -> list[Path]:
    """Go back to the draft as it came; gives what was removed."""
    removed = files(pair, settings)
    for path in removed:
        path.unlink()
    return removed


def keep_all_tokens(pair: Pair, settings: Settings) -> None:
    """Have a draft that was trimmed be the file that it was made from; raises DiskFull, InvalidConfig."""
    if (record := find(pair, settings)) is None or record.file is None:
        return
    whole = (record.figure.source, SHIPPED)
    chosen = next((i for i, each in enumerate(record.figures) if (each.source, each.types) == whole), None)
    if chosen is None:
        undo(pair.name, settings)
        return
    write(record.model_copy(update={"chosen": chosen, "file": None, "file_sha256": None}), settings)
    (directory(settings) / record.file).unlink(missing_ok=True)


def alone(pair: str, settings: Settings, say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Hold the lock under which this pair's record and files change; who waits for it says so."""
    what = f"the tuned draft of {pair}"
    return exclusive(record_path(pair, settings), what, lambda progress: say(progress.note))


def write(record: Record, settings: Settings) -> None:
    path = record_path(record.pair, settings)
    with writing(path, None):
        replace_text(path, record.model_dump_json(indent=1) + "\n")


def machine(settings: Settings) -> str:
    """What the figures depend on beside the files."""
    name, features = cpu()
    kind = hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()[:8]  # the name may not tell
    threads, llama_cpp = settings.threads or cores(), package_version("llama-cpp-python")
    gpu = f", gpu_layers {settings.gpu_layers}" if settings.gpu_layers else ""
    return f"{name} ({kind}), {threads} threads, llama.cpp {llama_cpp}{gpu}"


def _wrong(record: Record, pair: Pair, settings: Settings) -> str:
    if record.pair != pair.name or record.chosen >= len(record.figures):
        return "it is damaged"
    if record.machine != machine(settings):
        return "it was made on another machine, for other threads or gpu_layers, or by another llama.cpp"
    if record.figure.source not in {model.name for model in pair.models}:
        return f"{record.figure.source} is no longer a model of the pair"
    source = cached_path(_source(pair, record.figure.source), settings.cache_dir)
    if not source.is_file() or digest(source, settings.cache_dir) != record.source_sha256:
        return f"{source.name} is not the file that it was made from"
    if record.file is None:
        return ""
    tuned = directory(settings) / record.file
    if not tuned.is_file():
        return f"its file {tuned.name} is gone"
    return "" if digest(tuned, settings.cache_dir) == record.file_sha256 else f"{tuned.name} is damaged"


def _source(pair: Pair, name: str) -> Model:
    return next(model for model in pair.models if model.name == name)
