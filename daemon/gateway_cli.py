"""`draftd gateway`: serve OpenAI's protocol over HTTP, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from draftd.daemon.gateway_guard import LOOPBACK, Guard
from draftd.daemon.notify import Notifier
from draftd.daemon.options import Endpoint
from draftd.ipc.errors import InvalidConfig

DEFAULT = "127.0.0.1:8765"


def gateway(
    listen: Annotated[str, typer.Option(help="127.0.0.1:port or unix:/path.")] = DEFAULT,
    endpoint: Endpoint = None,
    host: Annotated[
        list[str] | None, typer.Option(help="A name by which apps may reach it, besides localhost.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may ask, as https://example.org.")
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="A file with a key a line; without it any key is taken.")
    ] = None,
) -> None:
    """Answer apps that speak OpenAI's protocol, until SIGTERM or Ctrl-C."""
    try:
        import uvicorn

        from draftd.daemon.gateway import create_app
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"the gateway needs {error.name}: run `pip install 'draftd[http]'`") from None
    keys = read_keys(api_keys) if api_keys is not None else frozenset()
    app: Any = create_app(endpoint)
    names = LOOPBACK | {name.lower() for name in host or []}
    notifier = Notifier()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            typer.echo(f"gateway at {listen}", err=True)
            notifier.ready()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when it has ended
    with bound(listen, bool(keys)) as listening, contextlib.suppress(KeyboardInterrupt):
        local = listening.family == socket.AF_UNIX  # no web page gets at a file
        guarded: Any = Guard(app, names, frozenset(origin or []), keys, any_host=local)
        config = uvicorn.Config(guarded, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        Server(config).run(sockets=[listening])
    notifier.stopping()


@contextlib.contextmanager
def bound(listen: str, has_keys: bool) -> Iterator[socket.socket]:
    """A socket at an address, a file only for its owner; InvalidConfig for one that is open to strangers."""
    unix = listen.startswith("unix:")
    path = Path(listen.removeprefix("unix:"))
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    if not unix and (not port.isdigit() or not 0 < int(port) < 65536 or not host):
        raise InvalidConfig(f"--listen {listen}: give 127.0.0.1:port or unix:/path")
    if not unix and host not in LOOPBACK and not has_keys:
        raise InvalidConfig(
            f"--listen {listen} can be reached from other machines: give keys with --api-keys, or 127.0.0.1"
        )
    family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    before = os.umask(0o077)
    try:
        if unix:
            if path.is_socket():  # of a gateway that is gone; one that lives keeps its own
                path.unlink()
            listening.bind(str(path))
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, int(port)))
    except OSError as error:
        listening.close()
        raise InvalidConfig(
            f"cannot listen at {listen}: {error.strerror}: choose another with --listen"
        ) from None
    finally:
        os.umask(before)
    try:
        yield listening
    finally:
        listening.close()
        if unix:
            path.unlink(missing_ok=True)


def read_keys(path: Path) -> frozenset[str]:
    """The keys of a file that only its owner may read."""
    try:
        mode, text = path.stat().st_mode, path.read_text("utf-8")
    except OSError as error:
        raise InvalidConfig(f"cannot read the keys file {path}: {error.strerror}") from None
    if mode & 0o077:
        raise InvalidConfig(f"the keys file {path} is open to others: run `chmod 600 {path}`")
    keys = frozenset(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not keys:
        raise InvalidConfig(f"the keys file {path} holds no key: write one a line")
    return keys
