"""`draftd metrics`: a process of its own that asks the daemon at each scrape and answers Prometheus.

It is a client like any other, so that a scrape costs the front one status reply, and neither its memory nor
its thread; a daemon that is down shows as `draftd_up 0`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Annotated, Any

import typer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest

from draftd.daemon import settings
from draftd.daemon.listening import LOOPBACK, bound, hostname
from draftd.daemon.metrics import Daemon
from draftd.daemon.notify import Notifier
from draftd.daemon.options import Endpoint
from draftd.ipc.client import Client
from draftd.ipc.endpoint import is_tcp, resolve, socket_path
from draftd.ipc.errors import InvalidConfig

PATIENCE = 2.0  # seconds for the daemon to answer, and for a scraper to ask


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
        if chosen.metrics is None and is_tcp(address):
            raise InvalidConfig(f"{address} has no directory to serve in: give --listen 127.0.0.1:port")
        where = chosen.metrics or f"unix:{socket_path(address).with_name('metrics.sock')}"
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        notifier = Notifier()
        with server(where, registry) as listening:
            typer.echo(f"metrics at {where}", err=True)
            notifier.ready()
            with contextlib.suppress(KeyboardInterrupt):
                listening.serve_forever()
        notifier.stopping()


class Server(HTTPServer):
    """An HTTP server on a socket that is bound already, one scrape at a time."""

    def __init__(self, listening: socket.socket, registry: CollectorRegistry) -> None:
        handler = type("Bound", (Handler,), {"registry": registry})
        self.address_family = listening.family  # HTTPServer makes a socket, and the sandbox allows this kind
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that did not wait for its answer is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def server(where: str, registry: CollectorRegistry) -> Iterator[Server]:
    """A server that listens, a Unix socket's file for owner and group; InvalidConfig if it can't."""
    with bound(where, umask=0o007) as listening, Server(listening, registry) as made:
        yield made


class Handler(BaseHTTPRequestHandler):
    """GET /metrics."""

    registry: CollectorRegistry
    timeout = PATIENCE  # a scraper that connects and says nothing does not keep the others out

    def do_GET(self) -> None:
        host = hostname(self.headers.get("Host") or "localhost")
        local = self.request.family == socket.AF_UNIX  # no web page gets at a file
        if not local and host not in LOOPBACK:
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
