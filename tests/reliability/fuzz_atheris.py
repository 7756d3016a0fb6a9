"""Any bytes through the decoder and the message types, led by atheris: only draftd's own errors come out.

    python -m tests.reliability.fuzz_atheris -runs=100000 [FOLDER FOR WHAT IT FINDS]

The first byte decides: a frame as it stands, or choices that make a message out of the protocol's own names,
which raw bytes would hit upon once in an age.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import atheris
import msgpack

with atheris.instrument_imports():
    from draftd.ipc import codec, messages
    from draftd.ipc.errors import DraftdError
    from draftd.ipc.parse import id_of, parse_client

TYPES = sorted([*messages.CLIENT_TYPES, "none"])
NAMES = sorted({name for kind in messages.CLIENT_TYPES.values() for name in kind.model_fields})
INNER = ["role", "content", "kind", "source", "tokens", "characters"]
DEEP = 3
MEMORY = 1 << 30  # bytes: a frame that takes more raises MemoryError


def value(choices: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
    """Some value; lists and maps up to a depth."""
    match choices.ConsumeIntInRange(0, 8 if depth < DEEP else 6):
        case 0:
            return None
        case 1:
            return choices.ConsumeBool()
        case 2:
            return choices.ConsumeIntInRange(-(2**63), 2**64 - 1)
        case 3:
            return choices.ConsumeIntInRange(-1, 2)
        case 4:
            return choices.ConsumeFloat()
        case 5:
            return choices.ConsumeUnicode(choices.ConsumeIntInRange(0, 8))
        case 6:
            return choices.ConsumeBytes(choices.ConsumeIntInRange(0, 8))
        case 7:
            return [value(choices, depth + 1) for _ in range(choices.ConsumeIntInRange(0, 3))]
        case _:
            names = [choices.PickValueInList(INNER) for _ in range(choices.ConsumeIntInRange(0, 3))]
            return {name: value(choices, depth + 1) for name in names}


def message(choices: atheris.FuzzedDataProvider) -> bytes:
    """A map with a message's type and some of the protocol's fields."""
    body = {"type": choices.PickValueInList(TYPES), "id": choices.ConsumeUnicode(2)}
    for _ in range(choices.ConsumeIntInRange(0, 4)):
        body[choices.PickValueInList(NAMES)] = value(choices)
    frame: bytes = msgpack.packb(body, unicode_errors="surrogatepass")
    return frame


def one(data: bytes) -> None:
    frame = message(atheris.FuzzedDataProvider(data[1:])) if data[:1] < b"\xc0" else data[1:]
    try:
        body = codec.decode(frame)
        id_of(body)
        parse_client(body)
    except DraftdError:
        pass


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
