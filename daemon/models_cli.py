"""`draftd models`: what can be served, what is on this machine, and how to change both."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from draftd.daemon import load_cli, tune_cli, tuned
from draftd.daemon import settings as configuration
from draftd.daemon.settings import Settings
from draftd.ipc.errors import CorruptModel, DraftdError, InvalidRequest, ModelNotFound
from draftd.models.catalog import Backend, Catalog, Model, Pair, load_catalog
from draftd.models.convert import conversions, converted_path, ensure_transformers
from draftd.models.digest import damaged
from draftd.models.fetch import (
    SOURCES,
    Progress,
    Report,
    cached_path,
    ensure,
    forget_partial,
    is_here,
    verify,
)
from draftd.models.user_catalog import add_pair, remove_pair

models_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, fetch, verify, tune, load, add and remove model pairs.",
)

PairArgument = Annotated[str | None, typer.Argument(metavar="[PAIR]", help="Default: the configured pair.")]


@models_app.command("list")
def list_() -> None:
    """Show the pairs and models, and which are on disk."""
    settings, catalog = _known()
    pairs = Table(
        "pair", "on disk", "size", "backend", "draft", "description", box=None, padding=(0, 2, 0, 0)
    )
    for pair in catalog.pairs.values():
        here = _mark(all(is_here(model, settings.cache_dir) for model in pair.models))
        size = sum(_size(model, settings.cache_dir) for model in pair.models)
        own = " (yours)" if pair.name in catalog.own else ""
        record = tuned.find(pair, settings)
        draft = "-" if pair.draft is None else tuned.SHIPPED
        if record is not None and tuned.is_itself(record.figure.source, pair):
            draft = f"tuned: target, {record.figure.types}"
        elif record is not None and record.file is not None:
            draft = f"tuned: {record.figure.types}"
        description = pair.description + own
        pairs.add_row(pair.name, here, decimal(size) if size else "?", pair.backend, draft, description)
    models = Table("model", "on disk", "size", "from", "licence", box=None, padding=(0, 2, 0, 0))
    for model in catalog.models.values():
        size = _size(model, settings.cache_dir)
        here = _mark(is_here(model, settings.cache_dir))
        models.add_row(model.name, here, decimal(size) if size else "?", _origin(model), model.licence)
    pairs.columns[4].no_wrap = True
    for table in (pairs, models):
        table.columns[0].no_wrap = True
    console = Console(markup=False, highlight=False)
    console.print(pairs)
    console.print()
    console.print(models)


@models_app.command()
def pull(
    pair: PairArgument = None,
    convert: Annotated[bool, typer.Option(help="Convert GGUF targets for transformers too.")] = True,
    tune: Annotated[bool, typer.Option(help="Tune the draft to this machine too.")] = True,
) -> None:
    """Fetch a pair's models, going on where a pull stopped, and make them ready for this machine."""
    settings, catalog = _known()
    chosen = catalog.pair(pair or settings.pair)
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    for model in chosen.models:
        if not is_here(model, settings.cache_dir):
            with Bar(*columns, TextColumn("{task.fields[source]}"), console=console) as bar:
                ensure(model, settings.cache_dir, _shown(bar))
        console.print(f"{model.name}: {_typed(ensure(model, settings.cache_dir))}")
    backend = settings.backend if settings.backend != "auto" else chosen.backend
    needs_converting = not chosen.target.is_directory and backend != "llama_cpp"
    if needs_converting and convert:
        _convert(chosen, settings, console)
    if tune and (convert or not needs_converting):  # it measures against the target as it will run
        tune_cli.tune_after_pull(chosen, settings, console)


def _convert(chosen: Pair, settings: Settings, console: Console) -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        console.print("not converted for transformers: the [engine] extra is not installed here")
        return
    target = cached_path(chosen.target, settings.cache_dir)
    converted = converted_path(target, settings.cache_dir, settings.dtype)
    if damaged(converted):
        console.print("converting the target for transformers: once, up to some minutes for a large model")
        with Bar(TextColumn("{task.description}"), BarColumn(), console=console) as bar:
            ensure_transformers(target, settings.cache_dir, settings.dtype, _shown(bar))
    console.print(f"{chosen.target.name} for transformers: {_typed(converted)}")


def _typed(path: Path) -> str:
    """A path as people type it, the home directory as ~."""
    home = os.path.expanduser("~")
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


@models_app.command("verify")
def verify_(pair: PairArgument = None) -> None:
    """Compare a pair's files with the catalog, byte for byte.

    Exit status 4 if one is wrong."""
    settings, catalog = _known()
    chosen = catalog.pair(pair or settings.pair)
    bad: list[DraftdError] = []
    for model in chosen.models:
        try:
            verify(model, settings.cache_dir)
        except (CorruptModel, ModelNotFound) as error:
            bad.append(error)
            continue
        fetched = model.is_directory and model.path is None  # then a manifest has hashes
        known = "" if model.sha256 or fetched else " (the catalog gives no hash to compare with)"
        typer.echo(f"{model.name}: good{known}")
    for directory in _conversions(chosen.models, settings.cache_dir):
        if wrong := damaged(directory, fresh=True):
            mend = f"`draftd models pull {chosen.name}` makes it again"
            bad.append(
                CorruptModel(f"{directory} is damaged ({', '.join(wrong[:3])}); it was removed: {mend}")
            )
            shutil.rmtree(directory)
        else:
            typer.echo(f"{directory.name}: good")
    for earlier in bad[:-1]:
        typer.echo(earlier.message, err=True)
    if bad:
        raise bad[-1]


@models_app.command()
def remove(
    pair: Annotated[str, typer.Argument(metavar="PAIR")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a pair's files from the cache.

    Those that another pair on this machine needs stay, and files outside the cache are never touched. A pair
    of your own leaves your catalog too.
    """
    settings, catalog = _known()
    chosen = catalog.pair(pair)
    others = [other for other in catalog.pairs.values() if other.name != pair]
    needed = {
        cached_path(model, settings.cache_dir)
        for other in others
        if all(is_here(model, settings.cache_dir) for model in other.models)
        for model in other.models
    }
    free = [model for model in chosen.models if cached_path(model, settings.cache_dir) not in needed]
    paths = [cached_path(model, settings.cache_dir) for model in free if model.path is None]
    made = [*_conversions(free, settings.cache_dir), *tuned.files(pair, settings)]
    doomed = [path for path in [*paths, *made] if path.exists()]
    own = pair in catalog.own
    if not doomed and not own:
        typer.echo(f"nothing to remove: {pair} has no files here that no other pair needs")
        return
    for path in doomed:
        typer.echo(f"{path} ({decimal(_bytes(path))})")
    if own:
        typer.echo(f"the entry {pair} of your catalog")
    if not yes and not typer.confirm("Delete this?"):
        raise typer.Exit(1)
    tuning = tuned.alone(pair, settings, lambda line: typer.echo(line, err=True))
    with tuning if tuned.directory(settings).exists() else nullcontext():
        if own:
            remove_pair(pair)
        for path in doomed:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        tuned.undo(pair, settings)  # of a tuning that has just ended, too
    for model in free:
        forget_partial(model, settings.cache_dir)


models_app.command("tune")(tune_cli.tune)
models_app.command("load")(load_cli.load)
models_app.command("unload")(load_cli.unload)


@models_app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new pair's name.")],
    target: Annotated[
        str,
        typer.Option(
            help="The large model: a GGUF file, a transformers directory, hub:owner/repo, "
            "hub:owner/repo/file.gguf, or a model of the catalog."
        ),
    ],
    draft: Annotated[
        str | None, typer.Option(help="The small model, a GGUF, named likewise; none: no model drafts.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="What runs the target: auto, transformers, llama_cpp.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a pair of this name.")] = False,
) -> None:
    """Add a pair of your own to your catalog."""
    backends: tuple[Backend, ...] = ("auto", "transformers", "llama_cpp")
    if backend not in backends:
        raise InvalidRequest(f"--backend {backend}: should be one of {', '.join(backends)}")
    path = add_pair(name, target, draft, backend, force=force)
    typer.echo(f"added {name} to {path}; `draftd models pull {name}` fetches what is not here yet")


def _known() -> tuple[Settings, Catalog]:
    return configuration.load(), load_catalog()


def _shown(bar: Bar) -> Report:
    """A report that draws on a progress bar: one task a model, notes as lines above it."""
    tasks: dict[str, TaskID] = {}

    def report(progress: Progress) -> None:
        if progress.stage in ("note", "waiting"):
            bar.console.print(progress.note)
            return
        if progress.model not in tasks:
            tasks[progress.model] = bar.add_task("", total=None, source="")
        what = progress.note or progress.stage
        bar.update(
            tasks[progress.model],
            description=f"{progress.model}: {what}",
            completed=progress.done,
            total=progress.total,
            source=f"from {SOURCES[progress.source]}" if progress.source else "",
        )

    return report


def _conversions(models: list[Model], cache_dir: Path) -> list[Path]:
    files = [cached_path(model, cache_dir) for model in models if not model.is_directory]
    return [path for file in files if file.exists() for path in conversions(file, cache_dir)]


def _size(model: Model, cache_dir: Path) -> int:
    path = cached_path(model, cache_dir)
    return model.size or (_bytes(path) if path.exists() else 0)


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _origin(model: Model) -> str:
    if model.path is not None:
        return "local"
    return " or ".join(name for name in SOURCES if getattr(model, name) is not None)


def _mark(here: bool) -> str:
    return "yes" if here else "no"
