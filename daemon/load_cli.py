"""`draftd models load` and `unload`: whether a running daemon's models are in memory."""

from __future__ import annotations

from typing import Annotated

import typer

from draftd.daemon.options import Endpoint
from draftd.ipc.client import Client

PairArgument = Annotated[
    str | None, typer.Argument(metavar="[PAIR]", help="Default: the pair that the daemon serves.")
]


def load(
    pair: PairArgument = None,
    keep_alive: Annotated[
        float | None,
        typer.Option(min=-1, help="Seconds they stay without a request; -1: for ever; default: the setting."),
    ] = None,
    endpoint: Endpoint = None,
) -> None:
    """Have the running daemon's models in memory; ends once they are."""
    with Client(endpoint) as client:
        status = client.load(keep_alive, pair)
    typer.echo(f"{status.pair}: in memory")


def unload(pair: PairArgument = None, endpoint: Endpoint = None) -> None:
    """Free the memory of the running daemon's models once no request runs; the next one loads them."""
    with Client(endpoint) as client:
        status = client.unload(pair)
    typer.echo(f"{status.pair}: not in memory")
