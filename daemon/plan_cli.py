"""`draftd plan`: what a pair needs of this machine before anything is loaded, and what fits best."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from draftd.daemon import budget
from draftd.daemon import settings as configuration
from draftd.daemon.listening import LOOPBACK
from draftd.daemon.settings import Settings
from draftd.ipc import endpoint
from draftd.ipc.client import Client
from draftd.ipc.errors import DraftdError, OutOfMemory
from draftd.models.catalog import load_catalog

HERE = LOOPBACK | {"0.0.0.0", "::"}  # hosts that are this machine


def held(settings: Settings) -> int:
    """Bytes of this machine that a daemon at the endpoint holds now, 0 where none answers."""
    try:
        address = endpoint.resolve(settings.endpoint)
        host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        if endpoint.is_tcp(address) and host not in HERE:
            return 0
        with Client(address, timeout=2.0) as client:
            return sum(client.status(full=True).memory.values())
    except DraftdError:
        return 0


def plan(
    pair: Annotated[str | None, typer.Option(help="The pair, from `draftd models list`.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file; default: config.toml in the user's configuration.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Positions a request may use, prompt and answer.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="What runs the target: auto, transformers or llama_cpp.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Say what a pair takes of memory and GPU, whether that fits, and what would run fastest within it.

    Exit status 4 if what is configured does not fit.
    """
    settings = configuration.load(config, pair=pair, context=context, slots=slots, backend=backend)
    chosen = load_catalog().pair(settings.pair)
    room = budget.measure_room(settings)
    asked = budget.asked(chosen, settings, room)
    # of a file that is not here the caches can't be told: what fits is known once it is
    missing = budget.missing(chosen, settings)
    better = None if missing else budget.best(chosen, settings, room)
    fits = any(each.fits(room) for each in asked)
    if as_json:
        found = {
            "room": dataclasses.asdict(room),
            "asked": [dataclasses.asdict(each) | {"fits": each.fits(room)} for each in asked],
            "missing": missing,
            "best": dataclasses.asdict(better) if better else None,
        }
        typer.echo(json.dumps(found))
    else:
        fitting = "fits, as far as it is known" if missing else "fits"
        for each in asked:
            typer.echo(f"{budget.table(each, room)}\n{fitting if each.fits(room) else 'DOES NOT FIT'}\n")
        if taken := held(settings):
            typer.echo(
                f"a daemon runs here and holds {budget.size(taken)}, which is not to be had now: "
                "`draftd models unload` frees it"
            )
        if missing:
            typer.echo(
                f"not here, so without caches and working memory: {', '.join(missing)}; "
                f"`draftd models pull {chosen.name}`, then plan again"
            )
        if better is not None:
            typer.echo(f"the fastest that fits: {budget.options(better)}")
    if not fits:
        raise OutOfMemory(budget.sentence(chosen, asked[-1], better, room))
