"""`draftd cache`: what earlier answers left behind as drafts."""

from __future__ import annotations

import pwd
import time
from pathlib import Path
from typing import Annotated

import typer

from draftd.daemon import conversations, forget, settings
from draftd.daemon.options import Endpoint
from draftd.daemon.terminal import shown
from draftd.drafts import suffix_store
from draftd.ipc.client import Client
from draftd.ipc.endpoint import is_held, resolve
from draftd.ipc.errors import Unreachable

cache_app = typer.Typer(
    no_args_is_help=True, help="What earlier requests left: history to draft from, and conversations kept."
)


@cache_app.callback()
def _group() -> None:
    pass


@cache_app.command("list")
def show(
    config: Annotated[
        Path | None, typer.Option(help="Settings file; default: config.toml in the user's configuration.")
    ] = None,
) -> None:
    """What is kept on disk: conversations that apps asked to be kept, and files of history."""
    chosen = settings.load(config)
    found = sorted(conversations.kept(chosen.state_dir), key=lambda entry: -entry.used)
    several = len({entry.user for entry in found}) > 1
    for entry in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        held = f"{entry.size / 1e6:8.1f} MB  {entry.tokens:6} tokens"
        whose = f"  ({_user(entry.user)})" if several else ""
        typer.echo(f"{used}  {held}  {shown(entry.app)}: {shown(entry.name)}{whose}")
    files, size = suffix_store.kept(chosen.state_dir)
    total = sum(entry.size for entry in found) / 1e6
    typer.echo(
        f"{len(found)} conversations, {total:.1f} of {chosen.conversations_mb} MB; in {chosen.state_dir}"
    )
    typer.echo(f"{files} files of history, {size / 1e6:.1f} MB")


@cache_app.command()
def clear(
    learnt: Annotated[
        bool, typer.Option("--learnt", help="Also what was learnt of the pairs: acceptance and costs.")
    ] = False,
    endpoint: Endpoint = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file; default: config.toml in the user's configuration.")
    ] = None,
) -> None:
    """Forget what earlier requests of all apps said, on disk and in the daemon that runs."""
    chosen = settings.load(config, endpoint=endpoint)
    try:
        with Client(chosen.endpoint) as client:
            client.ping()  # whether one is there shows at once
            count = client.clear(learnt=learnt)
            where = "; the daemon forgot it"  # it does not say of which directory
    except Unreachable as error:
        if is_held(resolve(chosen.endpoint)):
            raise Unreachable(f"{error.message}; a daemon is there, so nothing was removed") from None
        count = forget.clear(chosen.state_dir, learnt)
        where = f" of {chosen.state_dir}; no daemon is running"
    typer.echo(f"removed {count} files{where}")


def _user(user: str) -> str:
    """A user for people: by name, over TCP the key."""
    if not user.isdecimal():
        return f"key {user}"
    try:
        return pwd.getpwuid(int(user)).pw_name
    except KeyError:
        return f"user {user}"
