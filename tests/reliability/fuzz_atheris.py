"""Any bytes through the decoder and the message types, led by atheris: only draftd's own errors come out."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports():
    from draftd.ipc import codec, messages
    from draftd.ipc.errors import DraftdError


def one(frame: bytes) -> None:
    try:
        body = codec.decode(frame)
        messages.request_id(body)
        messages.parse_client(body)
    except DraftdError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
