"""The apps' side of the front: the ROUTER socket, frames in and out, and what is known of each connection.

What finds a connection full comes again: tokens and ends wait in their request (delivery.py), replies here.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import zmq

from draftd.daemon.gate import Gates
from draftd.daemon.peers import Peers
from draftd.ipc import codec, messages
from draftd.ipc.endpoint import is_tcp, socket_path
from draftd.ipc.errors import DraftdError, EndpointInUse, InvalidEndpoint, Overloaded

log = logging.getLogger("draftd.front")

KNOWN = 16384  # connections that are remembered; half a kilobyte each
SEND_QUEUE = 1000  # messages an app may leave unread; then what more there is waits in the front
OUTBOX = 64  # replies of one connection that wait for room; who asks on and reads nothing loses those behind
WAITERS = 1024  # apps that may wait for the models to come, or to go, or for a `clear`

Sending = Literal["sent", "blocked", "gone", "unfit"]  # unfit: no frame; an error went in its place


@dataclass(slots=True)
class Connection:
    """What an app said in `hello`, and when it was heard last."""

    name: str = ""
    user: str = ""  # who runs it, which it did not say itself (peers.py)
    lease: float | None = None  # seconds; None: its requests end only with the connection
    heard: float = 0.0  # monotonic seconds


class Apps:
    """Every connected app, by the ROUTER's name of its connection."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], peers: Peers, gates: Gates) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.peers = peers
        self.gates = gates
        self._known: OrderedDict[bytes, Connection] = OrderedDict()  # the one heard last is the last
        self._outbox: dict[bytes, deque[bytes]] = {}  # by connection: frames that wait for room

    def bind(self, address: str) -> None:
        socket = self.socket
        socket.set_hwm(SEND_QUEUE)
        socket.router_mandatory = 1  # a vanished client is an error to handle, not silence
        socket.maxmsgsize = codec.MAX_FRAME
        socket.linger = 500  # ms
        socket.heartbeat_ivl = 3000  # ms; over tcp only these find a machine that is gone
        socket.heartbeat_timeout = 10000
        self.peers.guard(socket)
        mask = os.umask(0o177)  # the socket file is its owner's until peers.open_to_group
        try:
            if not is_tcp(address):
                socket.setsockopt(zmq.USE_FD, self.gates.add(socket_path(address), socket))
            socket.bind(address)
            if not is_tcp(address):
                self.gates.bound()
        except (OSError, zmq.ZMQError) as error:
            if error.errno == zmq.EADDRINUSE:
                raise EndpointInUse(
                    f"something already listens at {address}: stop it or choose another port"
                ) from None
            raise InvalidEndpoint(f"cannot listen at {address}: {error.strerror}") from None
        finally:
            os.umask(mask)
        self.peers.open_to_group(address)

    def close(self) -> None:
        self.gates.close()
        self.socket.close()

    def receive(self) -> tuple[bytes, list[zmq.Frame]] | None:
        """One message, from which connection; None if nothing more has come."""
        try:
            client = self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frames = []
        while self.socket.rcvmore:
            frames.append(self.socket.recv(zmq.NOBLOCK, copy=False))
        if client in self._known:
            self._known[client].heard = time.monotonic()
            self._known.move_to_end(client)
        return client, frames

    def greet(self, client: bytes, user: str, hello: messages.Hello, busy: Callable[[], set[bytes]]) -> None:
        """Remember what a user's app said of itself; `busy`: the connections with open requests.

        Connections go unseen, so those heard longest ago are forgotten, but never a busy one.
        """
        lease = None if hello.lease_ms is None else hello.lease_ms / 1000
        self._known[client] = Connection(hello.client, user, lease, time.monotonic())
        self._known.move_to_end(client)
        if len(self._known) > KNOWN:
            spared = busy() | {client}
            idle = (known for known in self._known if known not in spared)
            for oldest in list(islice(idle, len(self._known) - KNOWN)):
                del self._known[oldest]

    def name(self, client: bytes) -> str:
        """What `hello` said; "" for an app that gave none."""
        known = self._known.get(client)
        return known.name if known else ""

    def user(self, client: bytes) -> str:
        """Who runs an app, in the words of `Peers.check`; "" before its `hello`."""
        known = self._known.get(client)
        return known.user if known else ""

    def owner(self, client: bytes) -> str:
        """Whose text and caches a connection's are, its user's under its name; "" for an app without one."""
        known = self._known.get(client)
        return f"{known.user} {known.name}" if known and known.name else ""

    def expired(self, client: bytes, now: float) -> bool:
        """Whether an app that has a lease was not heard for longer."""
        known = self._known.get(client)
        return known is not None and known.lease is not None and now - known.heard > known.lease

    @property
    def waits(self) -> bool:
        """Is there a reply that waits for room?"""
        return bool(self._outbox)

    def send(self, client: bytes, message: messages.DaemonMessage) -> Sending:
        """Send a message now, behind what waits; "blocked": the connection is full."""
        try:
            frame = codec.encode(message)
        except DraftdError as error:
            log.error("a message of type %s could not be sent: %s", message.type, error.message)
            words = f"the daemon's answer can't be sent: {error.message}"
            self.reply(client, messages.Error(id=message.id, code=DraftdError.code, message=words))
            return "unfit"
        return "blocked" if self._catch_up(client) == "blocked" else self._put(client, frame)

    def reply(self, client: bytes, message: messages.DaemonMessage) -> None:
        """Send a message, or keep it until the connection has room."""
        if self.send(client, message) == "blocked":
            waiting = self._outbox.setdefault(client, deque())
            if len(waiting) < OUTBOX:
                waiting.append(codec.encode(message))

    def send_error(self, client: bytes, request_id: str, error: DraftdError) -> None:
        retry_after = error.retry_after if isinstance(error, Overloaded) else None
        self.reply(
            client,
            messages.Error(id=request_id, code=error.code, message=error.message, retry_after=retry_after),
        )

    def retry(self) -> None:
        """Send what waits, as far as there is room now."""
        for client in list(self._outbox):
            self._catch_up(client)

    def _catch_up(self, client: bytes) -> Sending:
        """Send a connection what waits for room; "blocked": not all of it."""
        waiting = self._outbox.get(client)
        while waiting:
            outcome = self._put(client, waiting[0])
            if outcome == "blocked":
                return outcome
            if outcome == "gone":
                break
            waiting.popleft()
        self._outbox.pop(client, None)
        return "sent"

    def _put(self, client: bytes, frame: bytes) -> Sending:
        try:
            self.socket.send_multipart([client, frame], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno == zmq.EAGAIN:
                return "blocked"
            if error.errno == zmq.EHOSTUNREACH:
                return "gone"
            raise
        return "sent"
