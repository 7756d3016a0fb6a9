"""What a connection needs in either client: socket options, and the words for a missing daemon."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.utils.monitor import parse_monitor_message

from draftd.ipc.codec import MAX_FRAME, encode
from draftd.ipc.endpoint import is_tcp, socket_path
from draftd.ipc.errors import InvalidEndpoint, Unreachable, UnsupportedVersion
from draftd.ipc.keys import ClientKeys
from draftd.ipc.messages import Clear, Generate, Load, Ping, Prefill, Unload, Welcome
from draftd.ipc.version import VERSION

PING_EVERY = 5.0  # seconds between the signs of life of a client that has requests open, and of its daemon
LEASE_MS = 15_000  # how long the daemon keeps the requests of a client that gives none
SILENCE = 20.0  # seconds without any frame after which the daemon counts as gone
LAST_WORDS = 50  # milliseconds: libzmq reports a lost connection before it hands over its last frames
ALIVE = encode(Ping(id="alive"))  # no request has this id, so that the pong goes to none
# What may take longer than the daemon or the app may be silent.
LASTING = (Generate, Prefill, Load, Unload, Clear)

_UP = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DOWN = (
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_HUNG_UP = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
WATCHED = int(_UP | _DOWN)


def program_name() -> str:
    """What an app is called that gives no name: its program's file name."""
    name = Path(sys.argv[0]).name[:128] if sys.argv else ""
    return name.encode(errors="replace").decode()  # a file name may hold bytes that no message can


def hello(name: str) -> dict[str, object]:
    """What a client says of itself."""
    return {"client": name, "lease_ms": LEASE_MS}


def configure(socket: zmq.Socket[bytes], keys: ClientKeys | None) -> None:
    """Options for a client's DEALER socket: it fails soon, and a lost connection stays lost."""
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.LINGER, 500)  # ms: a cancel sent just before close() still leaves
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    # A new connection says hello again, so it is a new socket: reconnect after an hour, that is never.
    # Both -1 here and IMMEDIATE make libzmq drop what a daemon sent just before it went away.
    socket.setsockopt(zmq.RECONNECT_IVL, 3_600_000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 3000)  # these find a stopped process; PING_EVERY finds a stuck one
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)


def connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Begin to connect; InvalidEndpoint for an address at which only a daemon can be, as tcp://*:5555."""
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise InvalidEndpoint(
            f"endpoint {endpoint!r}: no app can connect to it ({error.strerror}): name the daemon's host, "
            "as in tcp://127.0.0.1:5555"
        ) from None


def change(event: Sequence[bytes]) -> bool | None:
    """What a socket monitor's message says: True up, False down, None neither."""
    kind = int(parse_monitor_message(list(event))["event"])
    return True if kind & _UP else False if kind & _DOWN else None


def refused(endpoint: str, event: Sequence[bytes]) -> Unreachable:
    """What a socket monitor's message says of a connection that never came up."""
    if int(parse_monitor_message(list(event))["event"]) & _HUNG_UP and not is_tcp(endpoint):
        return Unreachable(f"the daemon at {endpoint} takes no further connections; its log says why")
    return absent(endpoint)


def look(endpoint: str) -> None:
    """Unreachable if there is no socket file, or none that this user may reach; costs microseconds."""
    if is_tcp(endpoint):
        return
    try:
        socket_path(endpoint).stat()
    except PermissionError:
        raise Unreachable(f"no permission to reach {endpoint}: it belongs to another user") from None
    except OSError:
        raise absent(endpoint) from None


def absent(endpoint: str) -> Unreachable:
    if is_tcp(endpoint):
        return Unreachable(
            f"no daemon answers at {endpoint}, or it does not know this app's key: compare the keys of both"
        )
    return Unreachable(f"no daemon answers at {endpoint}; start it with `draftd serve`")


def gone(endpoint: str) -> Unreachable:
    return Unreachable(f"the daemon at {endpoint} went away; see its log, or start it with `draftd serve`")


def silent(endpoint: str, seconds: float) -> Unreachable:
    return Unreachable(f"the daemon at {endpoint} has not answered for {seconds:.0f} s; see `draftd status`")


def check_welcome(welcome: object) -> None:
    """UnsupportedVersion unless the daemon chose a version of the major number this client speaks."""
    version = welcome.version if isinstance(welcome, Welcome) else "no version"
    if version.partition(".")[0] != VERSION.partition(".")[0]:
        raise UnsupportedVersion(
            f"the daemon speaks protocol {version}, this client {VERSION}: update the older one"
        )


def keys_for(endpoint: str, keys: ClientKeys | None) -> ClientKeys | None:
    """The keys a connection takes: for tcp the given ones or the environment's, for ipc none."""
    if not is_tcp(endpoint):
        return None
    found = keys or ClientKeys.from_environment()
    if found is None:
        raise InvalidEndpoint(
            f"endpoint {endpoint!r}: tcp needs keys: give keys=ClientKeys.load(...) or set DRAFTD_SERVER_KEY "
            "and DRAFTD_CLIENT_KEY to key files"
        )
    return found
