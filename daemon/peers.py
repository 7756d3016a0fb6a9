"""Who may talk to the daemon: users and a group over the Unix socket, known keys over TCP."""

from __future__ import annotations

import grp
import os
import pwd
from functools import cache
from pathlib import Path

import zmq
from zmq.utils import z85

from draftd.daemon.settings import Settings
from draftd.ipc import endpoint, keys
from draftd.ipc.errors import InvalidConfig, InvalidRequest, NotPermitted

CREDENTIAL = "draftd" + keys.SUFFIX  # what the daemon's key is called in $CREDENTIALS_DIRECTORY
ZAP_ADDRESS = "inproc://zeromq.zap.01"  # where libzmq asks, rfc.zeromq.org/spec/27


class Peers:
    """The settings' word on who may connect; InvalidConfig if they don't hold together."""

    def __init__(self, settings: Settings, address: str) -> None:
        self.tcp = endpoint.is_tcp(address)
        self.group = group_id(settings.group)
        self.users = {_user_id(name) for name in settings.allow_users} or {os.getuid(), 0}
        self.zap: zmq.Socket[bytes] | None = None  # for the front's poller
        self._pair: tuple[bytes, bytes] = b"", b""
        self._allowed: frozenset[bytes] = frozenset()
        if self.tcp:
            self._pair = _server_keys(settings.curve_key)
            if settings.curve_clients is None:
                raise InvalidConfig(
                    f"{address}: tcp needs to know its apps: "
                    "set curve_clients to a directory with their *.key files"
                )
            self._allowed = keys.read_allowed(settings.curve_clients)

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Before binding: TCP peers must prove that they hold an allowed key."""
        if not self.tcp:
            return
        self.zap = socket.context.socket(zmq.REP)
        self.zap.linger = 0
        self.zap.bind(ZAP_ADDRESS)
        socket.curve_server = 1
        socket.curve_publickey, socket.curve_secretkey = self._pair
        socket.zap_domain = b"draftd"

    def answer_zap(self) -> None:
        """Say yes or no to the key of a client that wants in."""
        assert self.zap is not None
        version, request, _, _, _, mechanism, *credentials = self.zap.recv_multipart()
        key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
        # The third is what its frames' User-Id says from here on.
        verdict = (b"200", b"OK", key) if key in self._allowed else (b"400", b"unknown key", b"")
        self.zap.send_multipart([version, request, *verdict, b""])

    def close(self) -> None:
        if self.zap is not None:
            self.zap.close()

    def open_to_group(self, address: str) -> None:
        """After binding: let the group connect to the socket file, where there is one."""
        if self.group is not None and not self.tcp:
            path = endpoint.socket_path(address)
            os.chown(path, -1, self.group)
            path.chmod(0o660)

    def check(self, client: bytes, frame: zmq.Frame) -> str:
        """Who sent a frame: the user's number, as the kernel says, or the key that the handshake proved.

        NotPermitted unless they may use the daemon.
        """
        if client[:1] != b"\0":  # a chosen name could be taken over, with the answers that are on their way
            raise InvalidRequest("set no routing id on the socket: the daemon names its connections itself")
        if self.tcp:
            return str(frame.get("User-Id"))
        user = int(str(frame.get("Peer-Address")).rsplit(":", 3)[1])  # name:uid:gid:pid
        if user in self.users or (self.group is not None and self.group in _groups(user)):
            return str(user)
        raise NotPermitted(f"user {user} may not use this daemon: its operator can add them to allow_users")


def group_id(name: str | None) -> int | None:
    """A group's number; InvalidConfig if there is no such group."""
    if name is None or name.isdecimal():
        return None if name is None else int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidConfig(f"group: there is no group {name!r} on this machine") from None


def _user_id(name: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise InvalidConfig(f"allow_users: there is no user {name!r} on this machine") from None


@cache
def _groups(user: int) -> frozenset[int]:
    """The groups of a user, as of the first time they were asked for."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _server_keys(path: Path | None) -> tuple[bytes, bytes]:
    if path is not None:
        return keys.read_secret(path)
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and (credential := Path(directory, CREDENTIAL)).exists():
        return keys.read_secret(credential, guarded=True)
    raise InvalidConfig(
        "tcp needs CURVE keys: make them with `draftd keys make server`, and set curve_key to the "
        f"{keys.SUFFIX} file or pass it as the systemd credential {CREDENTIAL}"
    )
