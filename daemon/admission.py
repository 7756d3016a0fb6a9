"""Whether a request may come in."""

from __future__ import annotations

from draftd.daemon.settings import Settings
from draftd.ipc.errors import ModelNotFound, Overloaded
from draftd.ipc.messages import Generate, Prefill


def admit(message: Generate | Prefill, settings: Settings, open_requests: int) -> None:
    """ModelNotFound or Overloaded if this daemon can't take the request."""
    if message.model not in (None, settings.pair):
        raise ModelNotFound(f"this daemon serves {settings.pair}, not {message.model}")
    if open_requests >= settings.slots + settings.queue:
        raise Overloaded(f"{open_requests} requests are running or waiting: try again in a moment")
