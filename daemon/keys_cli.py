"""`draftd keys`: the CURVE keys that daemon and apps need over tcp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import platformdirs
import typer

keys_app = typer.Typer(no_args_is_help=True, help="Keys for apps that connect over tcp.")


@keys_app.callback()
def _group() -> None:
    pass


@keys_app.command()
def make(
    name: Annotated[str, typer.Argument(help="Whose they are, as in `server` or `laptop`.")],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where to put the files; default: keys in the user's configuration."),
    ] = None,
) -> None:
    """Make a pair of keys: NAME.key to give away, NAME.key_secret to keep (mode 0600)."""
    from draftd.ipc import keys

    public, secret = keys.make(directory or platformdirs.user_config_path("draftd") / "keys", name)
    typer.echo(f"{public}: the public key; a daemon lets in whoever's is in its curve_clients directory")
    typer.echo(f"{secret}: the secret key; for curve_key of a daemon, DRAFTD_CLIENT_KEY of an app")
