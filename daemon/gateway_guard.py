"""Who may speak to the gateway: no web page by another name, no stranger without a key.

A page whose host name was pointed at this machine (DNS rebinding) sends its own name as Host; one that asks
across origins sends its Origin. Neither gets an answer.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from draftd.daemon.listening import LOOPBACK, hostname

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]

MAX_BODY = 16 * 1024 * 1024  # bytes, as of a frame to the daemon
TOO_LARGE = f"the body is larger than {MAX_BODY} bytes: that is more than any prompt needs"
KINDS = {401: "authentication_error", 403: "permission_error", 413: "invalid_request_error"}


class Guard:
    """ASGI middleware: 403 for a wrong Host or Origin, 401 for a wrong key, 413 for a body beyond all use."""

    def __init__(
        self, app: App, hosts: frozenset[str] = LOOPBACK, origins: frozenset[str] = frozenset(),
        keys: frozenset[str] = frozenset(), any_host: bool = False,
    ) -> None:  # fmt: skip
        self.app, self.hosts, self.origins, self.keys, self.any_host = app, hosts, origins, keys, any_host

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            receive = _limited(receive)
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if refusal := self.refusal(headers, str(scope["path"])):
                await _answer(send, *refusal)
                return
        await self.app(scope, receive, send)

    def refusal(self, headers: dict[str, str], path: str) -> tuple[int, str] | None:
        """Status and sentence; None lets the request through."""
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            return 413, TOO_LARGE
        host = hostname(headers.get("host", ""))
        if not self.any_host and host not in self.hosts:
            return 403, f"the host name {host!r} is not this gateway's: use localhost, or name it with --host"
        origin = headers.get("origin")
        if origin and origin not in self.origins and not self._own(origin, headers.get("host", "")):
            return 403, f"pages of {origin} may not ask this gateway: allow them with --origin"
        if self.keys and (path.startswith("/v1/") or path == "/status"):  # it names the apps that ask
            given = headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1").strip()
            # Every key is compared, so that the time tells nothing.
            fits = [hmac.compare_digest(given, key.encode()) for key in self.keys]
            if not any(fits):
                return 401, "the key is missing or wrong: send Authorization: Bearer KEY"
        return None

    def _own(self, origin: str, host: str) -> bool:
        """Is it the gateway's own page?"""
        return origin in (f"http://{host}", f"https://{host}")


def _limited(receive: Any) -> Any:
    """Take no more of a body without a length than of one with it; it gets the same answer."""
    left = MAX_BODY

    async def limited() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            from starlette.exceptions import HTTPException  # without the extra there is none, nor a gateway

            raise HTTPException(413, TOO_LARGE)
        return message

    return limited


async def _answer(send: Any, status: int, sentence: str) -> None:
    kind = KINDS[status]
    body = json.dumps({"error": {"message": sentence, "type": kind, "param": None, "code": None}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
