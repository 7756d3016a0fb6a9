"""`draftd models tune`: which form of the draft is fastest here, measured, shown and kept."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from draftd.daemon import settings as configuration
from draftd.daemon import tuned
from draftd.daemon.settings import Settings
from draftd.ipc.errors import DraftdError, InvalidConfig, InvalidRequest
from draftd.models.catalog import Pair, load_catalog

if TYPE_CHECKING:
    from draftd.daemon.tune import Outcome

NAMED = 6  # scripts
ENGINE = ("llama_cpp", "numpy", "torch", "transformers")


def tune(
    pair: Annotated[str | None, typer.Option(help="Default: the configured pair.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Measure on this text; default: one that comes with draftd.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Try only the forms that usually win, as `models pull` does.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the draft as it came.")] = False,
) -> None:
    """Make the draft as fast as it gets on this machine.

    Writes its weights in other types, measures each file's speed here and how often it agrees with the
    target, and keeps the one that is expected to be fastest. Answers never depend on it."""
    settings = configuration.load()
    chosen = load_catalog().pair(pair or settings.pair)
    if undo:
        with tuned.alone(chosen.name, settings, lambda line: typer.echo(line, err=True)):
            removed = tuned.undo(chosen.name, settings)
        for path in removed:
            typer.echo(f"removed {path}")
        if not removed:
            typer.echo(f"the draft of {chosen.name} is not tuned")
        return
    if missing := [name for name in ENGINE if importlib.util.find_spec(name) is None]:
        raise InvalidConfig(
            f"{', '.join(missing)} is not installed: `pip install 'draftd[engine]'` brings it"
        )
    from draftd.daemon.tune import tune as measure

    body = tuned.sample_text() if text is None else _read(text)
    with _saying() as say:
        outcome = measure(chosen, settings, body, quick, say)
    show(outcome, Console(markup=False, highlight=False))


def tune_after_pull(pair: Pair, settings: Settings, console: Console) -> None:
    """Tune quickly unless that was done; what prevents it is said, and is no error of the pull."""
    if pair.draft is None:
        return
    if any(importlib.util.find_spec(name) is None for name in ENGINE):
        console.print("the draft is not tuned to this machine: the [engine] extra is not installed here")
        return
    if (record := tuned.find(pair, settings)) is None:
        from draftd.daemon.tune import tune as measure

        console.print("tuning the draft to this machine: once, a minute or two (--no-tune leaves this out)")
        try:
            with _saying() as say:
                outcome = measure(pair, settings, tuned.sample_text(), True, say)
        except DraftdError as error:
            console.print(f"the draft is not tuned: {error.message}")
            return
        record = outcome.record
        assert record is not None  # a pair with a draft keeps at least that one
    figure = record.figure
    console.print(
        f"draft: {figure.source}, {figure.types}: {figure.milliseconds:.1f} ms a token, "
        f"{figure.acceptance:.0%} accepted"
    )


def show(outcome: Outcome, console: Console) -> None:
    """The table of what was measured, and what was chosen."""
    record = outcome.record
    headings = ("types", "size", "ms/token", "accepted", "length", "expected", "")
    for source in dict.fromkeys(figure.source for figure in outcome.figures):
        table = Table(title=source, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for heading, width in zip(headings, (12, 9, 9, 9, 7, 9, 7), strict=True):
            table.add_column(
                heading, justify="left" if heading in ("types", "") else "right", min_width=width
            )
        for figure in [each for each in outcome.figures if each.source == source]:
            table.add_row(
                figure.types,
                decimal(figure.size),
                f"{figure.milliseconds:.1f}",
                f"{figure.acceptance:.1%}",
                str(figure.length),
                f"{figure.speedup:.2f}x",
                "chosen" if record is not None and figure == record.figure else "",
            )
        console.print(table)
    for reason in outcome.skipped:
        console.print(f"not tried: {reason}", soft_wrap=True)
    if record is None:
        console.print("nothing is installed: no draft is expected to beat the target alone")
    else:
        name = f"{record.figure.source}, {record.figure.types}"
        console.print(f"{record.pair} drafts with {name}, from its next start on", soft_wrap=True)
    if outcome.missing:
        console.print(
            f"it has no tokens of {_listed(outcome.missing)}: for answers in one of these tune with "
            "--text FILE, a text in it",
            soft_wrap=True,
        )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} other scripts" if more > 0 else "")


@contextlib.contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """Lines of progress: one that changes on a terminal, else one after the other."""
    console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield console.print
        return
    with console.status("") as status:
        yield status.update


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} is not text in UTF-8") from None
