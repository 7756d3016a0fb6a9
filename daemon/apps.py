"""The apps' side of the front: the ROUTER socket, frames in and out, and what is known of each connection."""

from __future__ import annotations

import zmq
from pydantic import BaseModel

from draftd.ipc import codec, messages
from draftd.ipc.errors import DraftdError

KNOWN = 4096  # connections whose app is remembered
SEND_QUEUE = 1000  # messages a client may leave unread before its requests are cancelled


class Apps:
    """Every connected app, by the ROUTER's name of its connection."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self._names: dict[bytes, str] = {}  # what the app calls itself

    def bind(self, address: str) -> None:
        self.socket.set_hwm(SEND_QUEUE)
        self.socket.router_mandatory = 1  # a vanished client is an error to handle, not silence
        self.socket.maxmsgsize = codec.MAX_FRAME
        self.socket.linger = 500  # ms
        self.socket.bind(address)

    def close(self) -> None:
        self.socket.close()

    def learn_name(self, client: bytes, name: str) -> None:
        self._names[client] = name
        while len(self._names) > KNOWN:  # connections come and go unseen: the oldest are forgotten
            del self._names[next(iter(self._names))]

    def name(self, client: bytes) -> str:
        """What `hello` said; "" for an app that gave none."""
        return self._names.get(client, "")

    def send(self, client: bytes, message: BaseModel) -> bool:
        """False if the client is gone or reads nothing."""
        try:
            self.socket.send_multipart([client, codec.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def send_error(self, client: bytes, request_id: str, error: DraftdError) -> None:
        self.send(client, messages.Error(id=request_id, code=error.code, message=error.message))
