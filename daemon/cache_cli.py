"""`draftd cache`: what earlier answers left behind as drafts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftd.daemon import settings
from draftd.drafts import suffix_store
from draftd.ipc.errors import InvalidConfig

cache_app = typer.Typer(no_args_is_help=True, help="The history that repeated text is drafted from.")


@cache_app.callback()
def _group() -> None:
    pass


@cache_app.command()
def clear(
    config: Annotated[
        Path | None, typer.Option(help="Settings file; default: config.toml in the user's configuration.")
    ] = None,
) -> None:
    """Forget on disk what earlier requests said; a running daemon forgets when it is restarted."""
    chosen = settings.load(config)
    try:
        count = suffix_store.clear(chosen.state_dir)
    except OSError as error:
        raise InvalidConfig(
            f"cannot clear the history in {chosen.state_dir}: {error.strerror or error}"
        ) from None
    typer.echo(f"removed {count} history files")
