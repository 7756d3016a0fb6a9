"""Ask draftd with nothing but pyzmq and msgpack: python minimal_client.py "Why is the sky blue?"

What it leaves out, ipc/PROTOCOL.md has: a lease, credit, cancelling, resuming.
"""

import os
import sys
from typing import Any

import msgpack
import zmq

runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
endpoint = os.environ.get("DRAFTD_ENDPOINT", f"ipc://{runtime}/draftd/draftd.sock")
socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0  # without a daemon there is nothing to wait for at the end
socket.connect(endpoint)


def say(kind: str, **fields: object) -> None:
    socket.send(msgpack.packb({"type": kind, "id": "1", **fields}))


def hear() -> dict[str, Any]:
    if not socket.poll(600_000):  # milliseconds: a large pair may take minutes to load
        sys.exit(f"no daemon answers at {endpoint}")
    message: dict[str, Any] = msgpack.unpackb(socket.recv())
    if message["type"] == "error":
        sys.exit(f"{message['code']}: {message['message']}")
    return message


say("hello", versions=["1.0"], client="minimal")
hear()
say("generate", messages=[{"role": "user", "content": sys.argv[1]}], max_tokens=200)
while (message := hear())["type"] != "done":
    print(message.get("text", ""), end="", flush=True)
print(f"\n({message['usage']['completion_tokens']} tokens, {message['finish_reason']})", file=sys.stderr)
