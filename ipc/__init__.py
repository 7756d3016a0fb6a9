"""The protocol and its clients; a name's module is imported when the name is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draftd.ipc.aio import AsyncClient
    from draftd.ipc.client import Client
    from draftd.ipc.errors import DraftdError
    from draftd.ipc.messages import Done, Status, Tokens
    from draftd.ipc.parts import Stats, Usage
    from draftd.ipc.session import Answer, Reply

_MODULES = {
    "Answer": "session",
    "AsyncClient": "aio",
    "Client": "client",
    "DraftdError": "errors",
    "Done": "messages",
    "Stats": "parts",
    "Status": "messages",
    "Tokens": "messages",
    "Usage": "parts",
    "Reply": "session",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Done",
    "DraftdError",
    "Reply",
    "Stats",
    "Status",
    "Tokens",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
