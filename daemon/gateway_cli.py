"""`draftd gateway`: serve OpenAI's protocol over HTTP, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from draftd.daemon.gateway_guard import Guard
from draftd.daemon.listening import LOOPBACK, bound
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
        from starlette.middleware.cors import CORSMiddleware

        from draftd.daemon.gateway import create_app
    except ModuleNotFoundError as error:
        raise InvalidConfig(f"the gateway needs {error.name}: run `pip install 'draftd[http]'`") from None
    keys = read_keys(api_keys) if api_keys is not None else frozenset()
    app: Any = create_app(endpoint)
    names = LOOPBACK | {name.lower() for name in host or []}
    origins = [each.rstrip("/").lower() for each in origin or []]  # as browsers write them
    notifier = Notifier()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            typer.echo(f"gateway at {listen}", err=True)
            notifier.ready()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises it again when it has ended
    where = bound(listen, umask=0o077, anywhere=bool(keys), hint=", or keys with --api-keys")
    with where as listening, contextlib.suppress(KeyboardInterrupt):
        local = listening.family == socket.AF_UNIX  # no web page gets at a file
        guarded: Any = Guard(app, names, frozenset(origins), keys, any_host=local)
        if origins:  # else a browser keeps the answer from the page
            guarded = CORSMiddleware(guarded, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
        config = uvicorn.Config(guarded, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        Server(config).run(sockets=[listening])
    notifier.stopping()


def read_keys(path: Path) -> frozenset[str]:
    """The keys of a file that only its owner may read."""
    given = path.is_relative_to(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))  # guarded by systemd
    try:
        mode, text = path.stat().st_mode, path.read_text("utf-8")
    except OSError as error:
        raise InvalidConfig(f"cannot read the keys file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"the keys file {path} is not UTF-8 text: write one key a line") from None
    if mode & 0o077 and not given:
        raise InvalidConfig(f"the keys file {path} is open to others: run `chmod 600 {path}`")
    keys = frozenset(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not keys:
        raise InvalidConfig(f"the keys file {path} holds no key: write one a line")
    return keys
