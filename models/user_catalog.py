"""The user's own catalog file: pairs added and taken out; what else they wrote in it stays as it is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from draftd.ipc.errors import InvalidConfig, InvalidRequest
from draftd.models.catalog import (
    Backend,
    Catalog,
    load_catalog,
    merged_catalog,
    read_user_catalog,
    user_catalog_path,
)
from draftd.models.convert import is_gguf, is_part
from draftd.models.digest import replace_text, sha256
from draftd.models.download import writing
from draftd.models.fetch import exclusive, quiet

_HUB = "hub:"


def add_pair(
    name: str,
    target: str,
    draft: str | None,
    backend: Backend = "auto",
    *,
    force: bool = False,
    user_file: Path | None = None,
) -> Path:
    """Write a pair and its models into the user's catalog; the file's path.

    A model is a local path, `hub:owner/repo` (transformers), `hub:owner/repo/file.gguf`, or a name of the
    catalog. Raises InvalidRequest when the name is taken (unless `force`), ModelNotFound, InvalidConfig.
    """
    path = user_file or user_catalog_path()
    with exclusive(path, path.name, quiet):  # of two at once the second reads what the first wrote
        known = load_catalog(path)
        if name in known.pairs and not force:
            raise InvalidRequest(
                f"there is a pair {name!r} already; choose another name or add --force to replace it"
            )
        written = read_user_catalog(path).get("models", {}) if name in known.own else {}
        old = {model: written[model] for model in _own_models(name) if model in written}
        entry: dict[str, Any] = {"target": "", "backend": backend}
        models: dict[str, dict[str, Any]] = {}
        for role, text in (("target", target), ("draft", draft)):
            if text is None:
                continue
            if role == "draft" and text == target:
                entry[role] = entry["target"]
            elif text in known.models and text not in old:
                entry[role] = text
            else:
                entry[role] = f"{name}-{role}"
                models[entry[role]] = old[text] if text in old else _model(text)
        if taken := [model for model in models if model in known.models and model not in old]:
            raise InvalidRequest(f"there is a model {taken[0]!r} already; choose another name for the pair")
        users = _users(known, name)
        if held := [model for model in old if model in users and old[model] != models.get(model)]:
            raise InvalidRequest(
                f"the pair {users[held[0]]!r} uses {held[0]!r} too; choose another name, or remove that "
                "pair first"
            )
        tables = {("pairs", name): entry} | {("models", model): fields for model, fields in models.items()}
        _rewrite(path, drop={("pairs", name), *(("models", model) for model in old)}, add=tables)
    return path


def remove_pair(name: str, user_file: Path | None = None) -> None:
    """Take a pair out of the user's catalog, and the models that were added with it if no other uses them."""
    path = user_file or user_catalog_path()
    with exclusive(path, path.name, quiet):
        users = _users(load_catalog(path), name)
        gone = {("models", model) for model in _own_models(name) if model not in users}
        _rewrite(path, drop={("pairs", name), *gone}, add={})


def _own_models(name: str) -> tuple[str, str]:
    """What the models are called that are added with a pair."""
    return f"{name}-target", f"{name}-draft"


def _users(known: Catalog, name: str) -> dict[str, str]:
    """A pair for each model that another than this one uses."""
    others = [pair for pair in known.pairs.values() if pair.name != name]
    return {model.name: pair.name for pair in others for model in pair.models}


def _model(text: str) -> dict[str, Any]:
    if text.startswith(_HUB):
        owner, _, rest = text.removeprefix(_HUB).partition("/")
        repo, _, file = rest.partition("/")
        if not owner or not repo:
            raise InvalidRequest(f"{text} should be hub:owner/repo or hub:owner/repo/file.gguf")
        if not file:
            return {"hub": {"repo": f"{owner}/{repo}"}}
        if is_part(Path(file)):
            raise InvalidRequest(
                f"{text} is one of several parts, and one file is fetched: fetch all of them into one folder "
                "and add the path of the first"
            )
        # Repositories call their files alike, and the cache knows one only by its name.
        cached = f"{owner}/{repo}/{file}".replace("/", "--")
        return {"file": cached, "hub": {"repo": f"{owner}/{repo}", "file": file}}
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InvalidRequest(f"{path} is no transformers model: it has no config.json")
        return {"path": str(path)}
    if not is_gguf(path):
        raise InvalidRequest(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
    return {"path": str(path), "size": path.stat().st_size, "sha256": sha256(path)}


def _rewrite(path: Path, drop: set[tuple[str, str]], add: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Replace tables in the file, atomically, and only if what results reads back as it should."""
    wanted = read_user_catalog(path)
    for section, name in drop:
        wanted.get(section, {}).pop(name, None)
    for (section, name), fields in add.items():
        wanted.setdefault(section, {})[name] = fields
    text = "".join(_kept_lines(path.read_text("utf-8"), drop)) if path.exists() else ""
    for (section, name), fields in add.items():
        text = text.rstrip("\n") + "\n\n" if text else ""
        text += f"[{section}.{json.dumps(name)}]\n" + "".join(
            f"{key} = {_toml(fields[key])}\n" for key in fields
        )
    if not _says(text, wanted):
        raise InvalidConfig(
            f"{path} is laid out in a way that can't be edited safely; please edit it by hand"
        )
    merged_catalog(wanted, str(path))  # what it complains about is not written
    with writing(path, None):
        replace_text(path.resolve(), text)  # a link stays one


def _kept_lines(text: str, drop: set[tuple[str, str]]) -> list[str]:
    """All but the tables to drop; comments in front of the next table are of that one."""
    kept, keep = [], True
    between: list[str] = []  # comments and empty lines since the last entry of a table that goes
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            keep = _table(line)[:2] not in drop
            kept += between if keep else []
            between = []
        if keep:
            kept.append(line)
        else:
            between = [*between, line] if line.lstrip()[:1] in ("", "#") else []
    return kept + between


def _table(line: str) -> tuple[str, ...]:
    """The names in a header like [models."a.b".hub]; empty for a line that only looks like one."""
    try:
        found: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    names = []
    while isinstance(found, dict) and found:
        name, found = next(iter(found.items()))
        names.append(name)
    return tuple(names)


def _says(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return _without_empty(tomllib.loads(text)) == _without_empty(wanted)
    except tomllib.TOMLDecodeError:  # a table now written twice: once inline, once here
        return False


def _without_empty(document: dict[str, Any]) -> dict[str, Any]:
    return {section: tables for section, tables in document.items() if tables}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
