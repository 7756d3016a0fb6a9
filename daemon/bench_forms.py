"""What `draftd bench --quality` asks: each form of a pair's models, as a daemon's pair and variables.

The target in transformers (a GGUF file's own weights in 16 or 32 bits), in llama.cpp as it came, and in
llama.cpp quantised further, in files that are made here and removed once they were asked; the draft alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from draftd.daemon import budget, machine
from draftd.daemon.settings import Settings
from draftd.ipc.errors import InvalidRequest, OutOfMemory
from draftd.models.catalog import Pair, load_catalog, user_catalog_path
from draftd.models.fetch import cached_path, need

QUANTISED = ("Q4_0", "Q3_K_M", "Q2_K")  # recipes of models/quantize.py, from large to small
FORMS = ("transformers", "llama_cpp", *QUANTISED, "draft")


@dataclass(frozen=True, slots=True)
class Make:
    """A file to be written from another in a recipe's types."""

    source: Path
    out: Path
    recipe: str
    threads: int


@dataclass(frozen=True, slots=True)
class Form:
    """One daemon to ask: which pair, with which variables; the first policy is that of the target alone."""

    name: str
    pair: str
    policies: tuple[str, ...] = ("off", "auto")
    variables: dict[str, str] = field(default_factory=dict)
    make: Make | None = None  # before the daemon starts


def forms(
    pair: Pair, settings: Settings, wanted: Sequence[str], folder: Path
) -> tuple[list[Form], list[str]]:
    """The forms that this pair has, the reference first, and sentences about those left out.

    Writes a catalog into `folder` that has the user's own models too, and no model yet. Raises
    ModelNotFound, CorruptModel, InvalidRequest (a form that there is not, or none is left).
    """
    if unknown := [name for name in wanted if name not in FORMS]:
        raise InvalidRequest(f"--form {unknown[0]}: there are {', '.join(FORMS)}")
    need(pair, settings.cache_dir)
    catalog = {"DRAFTD_CATALOG": str(folder / "catalog.toml"), "DRAFTD_BACKEND": "llama_cpp"}
    own = user_catalog_path()
    threads = settings.threads or machine.cores()
    entries = [own.read_text("utf-8") if own.exists() else ""]
    found: list[Form] = []
    left_out: list[str] = []
    for name in dict.fromkeys(wanted or FORMS):
        if reason := _missing(pair, settings, name):
            left_out.append(f"{name} is left out: {reason}")
        elif name == "transformers":
            label = f"transformers {settings.dtype}"
            found.append(Form(label, pair.name, variables={"DRAFTD_BACKEND": "transformers"}))
        elif name == "llama_cpp":
            found.append(Form("llama.cpp", pair.name, variables={"DRAFTD_BACKEND": "llama_cpp"}))
        elif name == "draft":
            assert pair.draft is not None
            alone = f"{pair.name}-draft-alone"
            entries.append(_entry(alone, pair.draft.name))
            found.append(Form("draft alone", alone, ("off",), catalog))
        else:
            quantised = f"{pair.name}-{name}"
            file = folder / f"{quantised}.gguf"
            entries.append(f"[models.{json.dumps(quantised)}]\npath = {json.dumps(str(file))}\n")
            entries.append(_entry(quantised, quantised))
            make = Make(cached_path(pair.target, settings.cache_dir), file, name, threads)
            found.append(Form(f"target as {name}", quantised, ("off",), catalog, make))
    if not found:
        raise InvalidRequest(f"{pair.name} has none of these forms: {'; '.join(left_out)}")
    (folder / "catalog.toml").write_text("\n".join(entries), "utf-8")
    return found, left_out


def _entry(pair: str, target: str) -> str:
    return f'[pairs.{json.dumps(pair)}]\ntarget = {json.dumps(target)}\nbackend = "llama_cpp"\n'


def _missing(pair: Pair, settings: Settings, form: str) -> str:
    """Why a pair does not have this form, or empty."""
    if form == "transformers":
        return ""
    if form == "draft":
        return "" if pair.draft is not None else "the pair has no draft"
    if pair.target.is_directory:
        return "the target is no GGUF file"
    if form == "llama_cpp":
        return ""
    from draftd.models.gguf_tensors import read_tensors, row_bytes
    from draftd.models.quantize import BY_NAME, expected_bytes, unfit

    tensors = read_tensors(cached_path(pair.target, settings.cache_dir))
    now = sum(row_bytes(each.kind, each.columns) * (each.elements // each.columns) for each in tensors)
    if expected_bytes(tensors, BY_NAME[form]) >= now:
        return "it would not be smaller than the file is"
    return unfit(tensors, BY_NAME[form])


def must_fit(form: Form, settings: Settings) -> None:
    """OutOfMemory says what a form lacks, once its file is made, unless `check_memory` is off."""
    if not settings.check_memory:
        return
    own = form.variables.get("DRAFTD_CATALOG")
    pair = load_catalog(None if own is None else Path(own)).pair(form.pair)
    as_asked = settings.model_copy(update={"backend": form.variables["DRAFTD_BACKEND"]})
    room = budget.measure_room(as_asked)
    (asked,) = budget.asked(pair, as_asked, room)
    if not asked.fits(room):
        raise OutOfMemory(budget.sentence(pair, asked, None, room))


@contextmanager
def made(form: Form) -> Iterator[None]:
    """The file that a form needs, if it needs one; it is removed behind. Raises as `quantize` does."""
    if form.make is None:
        yield
        return
    from draftd.models.quantize import BY_NAME, quantize

    try:
        quantize(form.make.source, form.make.out, BY_NAME[form.make.recipe], form.make.threads)
        yield
    finally:
        form.make.out.unlink(missing_ok=True)
