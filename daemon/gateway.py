"""The OpenAI-compatible door: HTTP on one side, on the other a client of the daemon like any app."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from draftd.daemon import gateway_answers as answers
from draftd.daemon import gateway_types as types
from draftd.daemon.gateway_answers import Head
from draftd.daemon.gateway_page import serve_page
from draftd.daemon.metrics import Daemon
from draftd.ipc.aio import AsyncClient
from draftd.ipc.errors import (
    Cancelled,
    ContextOverflow,
    DraftdError,
    EngineFailed,
    InvalidRequest,
    MalformedFrame,
    ModelNotFound,
    Overloaded,
    Unreachable,
)
from draftd.ipc.messages import Done, Status, Tokens
from draftd.ipc.parts import AnswerEnd
from draftd.ipc.session import Reply, reply

T = TypeVar("T")
DEFAULT_TOKENS = 4096  # of an answer whose length nobody named; the context may end it before
RETRY_AFTER = "2"  # seconds, where the daemon gives no hint
STOPPING = "the gateway is stopping: ask again in a moment"
# Line ends of Unicode's: apps that read a stream by httpx's lines would get half a chunk.
ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
STATUSES = {  # the HTTP status of an error, and OpenAI's type for it; the first that fits
    ContextOverflow: (400, "invalid_request_error"),
    InvalidRequest: (400, "invalid_request_error"),
    MalformedFrame: (400, "invalid_request_error"),  # too large or too deep for one
    ModelNotFound: (404, "invalid_request_error"),
    Overloaded: (503, "overloaded_error"),
    Unreachable: (503, "server_error"),
    EngineFailed: (503, "server_error"),
    Cancelled: (503, "server_error"),  # the daemon is stopping, or the gateway
}

HERE = {"models": "GET", "chat/completions": "POST", "completions": "POST"}  # under /v1
ABSENT = {  # what OpenAI has besides, and why it is not here
    "embeddings": "a text model has no embeddings that are of use",
    "moderations": "the model judges nothing but its next token",
    "images": "the model is a text model and has no images",
    "audio": "the model is a text model and has no audio",
    "realtime": "the model is a text model and has no audio",
    "files": "nothing is stored for later",
    "uploads": "nothing is stored for later",
    "batches": "requests wait in the queue, not in files: send each by itself",
    "responses": "no conversation is stored: send its messages to /v1/chat/completions",
    "assistants": "no conversation is stored: send its messages to /v1/chat/completions",
    "threads": "no conversation is stored: send its messages to /v1/chat/completions",
    "vector_stores": "nothing is stored for later",
    "fine_tuning": "models are served as they are",
    "chat": "answers are not stored",
    "models": "models are loaded with `draftd models`, not over HTTP",
}


class Json(JSONResponse):
    """JSON in UTF-8; half of a surrogate pair, as in a model's name, goes back the way JSON spells it."""

    def render(self, content: Any) -> bytes:
        return _utf8(json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def create_app(endpoint: str | None) -> FastAPI:
    """The application; it connects to the daemon with the first request, and anew when it was gone."""
    client = AsyncClient(endpoint, name="draftd gateway")

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(title="draftd", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(DraftdError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_wrong_body)
    app.add_exception_handler(HTTPException, _on_wrong_path)
    app.add_exception_handler(ClientDisconnect, _on_gone)

    serve_page(app)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        status = await client.status()
        return {"object": "list", "data": [_model(status)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        status = await client.status()
        if name != status.pair:
            raise ModelNotFound(f"this daemon serves {status.pair}, not {name}")
        return _model(status)

    @app.post("/v1/chat/completions")
    async def chat(body: types.Chat, request: Request) -> Response:
        return await _respond(client, "chat", body, request)

    @app.post("/v1/completions")
    async def completion(body: types.Completion, request: Request) -> Response:
        return await _respond(client, "completion", body, request)

    @app.get("/health")
    async def health() -> JSONResponse:
        status = await client.status()
        well = status.state in ("ready", "unloaded")  # unloaded: the next request loads the models
        body = {"status": "ok" if well else status.state, "detail": status.detail, "pair": status.pair}
        return JSONResponse(body, 200 if well else 503)

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return (await client.status(full=True)).model_dump(exclude={"id", "type"})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        found = (await asyncio.gather(client.status(full=True), return_exceptions=True))[0]

        def told() -> Status:
            if isinstance(found, BaseException):
                raise found  # a daemon that is away is `draftd_up 0`
            return found

        registry = CollectorRegistry()
        registry.register(Daemon(told))
        return PlainTextResponse(generate_latest(registry).decode())

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def missing(path: str) -> JSONResponse:
        if path in HERE:
            sentence = f"/v1/{path} takes {HERE[path]} only"
            wrong = _error(405, sentence, "invalid_request_error", None)
            wrong.headers["Allow"] = HERE[path]
            return wrong
        why = ABSENT.get(path.partition("/")[0], "draftd has nothing of that name")
        sentence = f"/v1/{path} is not here: {why}; there are {', '.join(f'/v1/{name}' for name in HERE)}"
        return _error(501, sentence, "not_implemented_error", None)

    return app


async def _respond(
    client: AsyncClient, kind: answers.Kind, body: types.Chat | types.Completion, request: Request
) -> Response:
    """Ask the daemon, and answer in one piece or as a stream."""
    name = "chatcmpl-" if kind == "chat" else "cmpl-"
    # Apps send the name of whatever model they were written for; there is one here, and it answers.
    model, streams_usage = body.model or "draftd", body.stream is True and body.wants_usage
    head = Head(kind, name + secrets.token_hex(12), int(time.time()), model, streams_usage)
    events = client.generate(**types.generate(body, DEFAULT_TOKENS))
    # A wrong request, or a daemon that is away, must still be an HTTP error: wait for the first event.
    try:
        event = await _unless_gone(anext(events), request)
    except BaseException:
        await events.aclose()
        raise
    if body.stream:
        media = "text/event-stream"
        return StreamingResponse(_stream(head, event, events, body), media_type=media, headers=UNBUFFERED)
    async with aclosing(events):
        return Json(answers.whole(head, await _unless_gone(_gathered(event, events), request)))


UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _gathered(event: Tokens | Done, events: AsyncGenerator[Tokens | Done, None]) -> Reply:
    """The whole reply, of its first event and those to come."""
    parts = []
    while isinstance(event, Tokens):
        parts.append(event)
        event = await anext(events)
    return reply(parts, event)


async def _unless_gone(work: Awaitable[T], request: Request) -> T:
    """Wait for what is asked, but not longer than the app waits for us: its leaving cancels the request."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=0.2))[0]:
            if await request.is_disconnected():
                raise ClientDisconnect
        return task.result()
    except asyncio.CancelledError:  # uvicorn's end of what still runs a while after SIGTERM
        raise Cancelled(STOPPING) from None
    finally:
        if not task.done():  # nobody else would end it
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _stream(
    head: Head, event: Tokens | Done, events: AsyncGenerator[Tokens | Done, None], body: types.Sampling
) -> AsyncGenerator[bytes, None]:
    """Server-sent events as OpenAI sends them; an error becomes an event of its own, then the stream ends."""
    told = [0] * (body.n or 1)  # characters of the tokens whose log-probabilities went out, by answer
    async with aclosing(events):
        for index in range(body.n or 1):
            if (chunk := answers.opening(head, index)) is not None:
                yield _event(chunk)
        try:
            while isinstance(event, Tokens):
                if event.text or event.tool_calls or event.logprobs:
                    yield _event(answers.piece(head, event, body.mark_drafted, told[event.index]))
                    told[event.index] += sum(len(each.text) for each in event.logprobs)
                event = await anext(events)
        except DraftdError as error:
            _, kind = _status(error)
            yield _event({"error": _body(error.message, kind, error.code)})
            return
        except asyncio.CancelledError:  # the same end, or the app has left and hears nothing
            yield _event({"error": _body(STOPPING, "server_error", Cancelled.code)})
            raise
        ends: Sequence[AnswerEnd | Done] = event.answers or [event]
        for index, end in enumerate(ends):
            yield _event(answers.closing(head, index, end, event.usage))
        if head.usage:
            yield _event(answers.usage_chunk(head, event.usage))
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return _utf8(f"data: {json.dumps(chunk, ensure_ascii=False).translate(ENDS)}\n\n")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # U+D800 becomes \ud800, which in JSON means it


def _model(status: Status) -> dict[str, Any]:
    return {"id": status.pair, "object": "model", "created": 0, "owned_by": "draftd"}


def _status(error: DraftdError) -> tuple[int, str]:
    return next((found for kind, found in STATUSES.items() if isinstance(error, kind)), (500, "server_error"))


def _body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _error(status: int, message: str, kind: str, code: str | None, param: str | None = None) -> JSONResponse:
    return Json({"error": _body(message, kind, code, param)}, status)


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DraftdError)
    status, kind = _status(error)
    code = "context_length_exceeded" if isinstance(error, ContextOverflow) else error.code
    reply = _error(status, error.message, kind, code)
    if status == 503:
        hint = error.retry_after if isinstance(error, Overloaded) else None
        reply.headers["Retry-After"] = RETRY_AFTER if hint is None else str(max(1, math.ceil(hint)))
    return reply


async def _on_wrong_body(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Where a field may be of several types each has its fault: the deepest is of the one that was meant.
    fault = sorted(error.errors(), key=lambda each: len(each["loc"]))[-1]
    if fault["type"] == "json_invalid":
        sentence = f"the body is no JSON: {fault['ctx']['error']} at character {fault['loc'][-1]}"
        return _error(400, sentence, "invalid_request_error", None)
    where = ".".join(str(part) for part in fault["loc"][1:])
    nothing = "the body is no JSON object: send one, as Content-Type: application/json"
    sentence = f"{where}: {fault['msg']}" if where else nothing
    return _error(400, sentence, "invalid_request_error", None, where or None)


async def _on_wrong_path(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail}"
    return Json({"error": _body(sentence, "invalid_request_error", None)}, error.status_code, error.headers)


async def _on_gone(_: Request, error: Exception) -> Response:
    """Nobody reads it; but what an application raises uvicorn writes into the log, with a traceback."""
    return Response(status_code=499)
