"""What a connection needs in either client: socket options, and the words for a missing daemon."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from draftd.ipc.codec import MAX_FRAME
from draftd.ipc.endpoint import socket_path
from draftd.ipc.errors import Unreachable, UnsupportedVersion
from draftd.ipc.messages import VERSION, Welcome

PING_EVERY = (
    5.0  # seconds without a frame, while one is awaited, after which the client asks for a sign of life
)
SILENCE = 20.0  # seconds without any frame after which the daemon counts as gone
LAST_WORDS = 50  # milliseconds: libzmq reports a lost connection before it hands over its last frames
PING_ID = "alive"  # no request has it, so that the pong goes to none

_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
WATCHED = int(_UP | _DOWN)


def program_name() -> str:
    """What an app is called that gives no name: its program's file name."""
    return Path(sys.argv[0]).name[:128] if sys.argv else ""


def configure(socket: zmq.Socket[bytes]) -> None:
    """Options for a client's DEALER socket: it fails soon, and a lost connection stays lost."""
    socket.setsockopt(zmq.LINGER, 500)  # ms: a cancel sent just before close() still leaves
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    # A new connection says hello again, so it is a new socket: reconnect after an hour, that is never.
    # Both -1 here and IMMEDIATE make libzmq drop what a daemon sent just before it went away.
    socket.setsockopt(zmq.RECONNECT_IVL, 3_600_000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 3000)  # these find a stopped process; PING_EVERY finds a stuck one
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)


def change(event: Sequence[bytes]) -> bool | None:
    """What a socket monitor's message says: True up, False down, None neither."""
    kind = int(parse_monitor_message(list(event))["event"])
    return True if kind & _UP else False if kind & _DOWN else None


def look(endpoint: str) -> None:
    """Unreachable if there is no socket file, or none that this user may reach; costs microseconds."""
    try:
        socket_path(endpoint).stat()
    except PermissionError:
        raise Unreachable(f"no permission to reach {endpoint}: it belongs to another user") from None
    except OSError:
        raise absent(endpoint) from None


def absent(endpoint: str) -> Unreachable:
    return Unreachable(f"no daemon answers at {endpoint}; start it with `draftd serve`")


def gone(endpoint: str) -> Unreachable:
    return Unreachable(f"the daemon at {endpoint} went away; see its log, or start it with `draftd serve`")


def silent(endpoint: str, seconds: float) -> Unreachable:
    return Unreachable(f"the daemon at {endpoint} has not answered for {seconds:.0f} s; see `draftd status`")


def check_welcome(welcome: object) -> None:
    """UnsupportedVersion unless the daemon chose a version this client offered."""
    if not isinstance(welcome, Welcome) or welcome.version != VERSION:
        other = welcome.version if isinstance(welcome, Welcome) else "no version"
        raise UnsupportedVersion(
            f"the daemon speaks protocol {other}, this client {VERSION}: update the older one"
        )
