"""`draftd metrics`: a process of its own that asks the daemon at each scrape and answers Prometheus.

It is a client like any other, so that a scrape costs the front one status reply, and neither its memory nor
its thread; a daemon that is down shows as `draftd_up 0`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import socketserver
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest

from draftd.daemon import settings
from draftd.daemon.metrics import Daemon
from draftd.daemon.notify import Notifier
from draftd.daemon.options import Endpoint
from draftd.ipc.client import Client
from draftd.ipc.endpoint import resolve, socket_path
from draftd.ipc.errors import InvalidConfig

PATIENCE = 2.0  # seconds for the daemon to answer, and for a scraper to ask
LOOPBACK = {"127.0.0.1", "[::1]", "localhost"}


def metrics(
    listen: Annotated[
        str | None,
        typer.Option(
            help="unix:/path or 127.0.0.1:port; default: the setting `metrics`, "
            "else metrics.sock beside the daemon's socket."
        ),
    ] = None,
    endpoint: Endpoint = None,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once and end.")] = False,
) -> None:
    """Serve the daemon's figures to Prometheus, until SIGTERM or Ctrl-C."""
    chosen = settings.load(endpoint=endpoint, metrics=listen)
    address = resolve(chosen.endpoint)
    client = Client(address, timeout=PATIENCE, name="draftd metrics")
    registry = CollectorRegistry()
    registry.register(Daemon(lambda: client.status(full=True)))
    with client:
        if once:
            typer.echo(generate_latest(registry).decode(), nl=False)
            return
        where = chosen.metrics or f"unix:{socket_path(address).with_name('metrics.sock')}"
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        notifier = Notifier()
        with server(where, registry) as listening:
            typer.echo(f"metrics at {where}", err=True)
            notifier.ready()
            with contextlib.suppress(KeyboardInterrupt):
                listening.serve_forever()
        notifier.stopping()


@contextlib.contextmanager
def server(where: str, registry: CollectorRegistry) -> Iterator[socketserver.BaseServer]:
    """A bound HTTP server, one scrape at a time; InvalidConfig if it may not or cannot listen there."""
    handler = type("Bound", (Handler,), {"registry": registry})
    try:
        if where.startswith("unix:"):
            path = Path(where.removeprefix("unix:"))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.is_socket():
                path.unlink()
            bound: socketserver.BaseServer = UnixServer(str(path), handler)
        else:
            host, _, port = where.rpartition(":")
            if host not in LOOPBACK or not port.isdigit():
                raise InvalidConfig(
                    f"metrics = {where!r}: give unix:/path or 127.0.0.1:port, nothing further off"
                )
            bound = (HTTPServer6 if host == "[::1]" else HTTPServer)((host.strip("[]"), int(port)), handler)
    except (OSError, OverflowError) as error:
        raise InvalidConfig(
            f"cannot serve metrics at {where}: {error}: choose another with --listen"
        ) from None
    try:
        yield bound
    finally:
        bound.server_close()
        if where.startswith("unix:"):
            path.unlink(missing_ok=True)


class UnixServer(socketserver.UnixStreamServer):
    """HTTP over a Unix socket that only its owner and group may use."""

    def server_bind(self) -> None:
        before = os.umask(0o007)
        try:
            super().server_bind()
        finally:
            os.umask(before)


class HTTPServer6(HTTPServer):
    address_family = socket.AF_INET6


class Handler(BaseHTTPRequestHandler):
    """GET /metrics."""

    registry: CollectorRegistry
    timeout = PATIENCE  # a scraper that connects and says nothing does not keep the others out

    def do_GET(self) -> None:
        host = (self.headers.get("Host") or "localhost").rsplit(":", 1)[0] or "localhost"
        if not isinstance(self.server, UnixServer) and host not in LOOPBACK:
            self.send_error(403, "only local names")  # a web page whose name was pointed at this machine
            return
        if self.path.split("?")[0] != "/metrics":
            self.send_error(404, "the metrics are at /metrics")
            return
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        body = encode(self.registry)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is not worth a line each."""

    def address_string(self) -> str:
        return "local"
