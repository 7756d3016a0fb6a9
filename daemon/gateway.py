"""The OpenAI-compatible door: HTTP on one side, on the other a client of the daemon like any app."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest

from draftd.daemon import gateway_answers as answers
from draftd.daemon import gateway_types as types
from draftd.daemon.gateway_answers import Answer, Head
from draftd.daemon.gateway_page import serve_page
from draftd.daemon.metrics import Daemon
from draftd.ipc.aio import AsyncClient
from draftd.ipc.errors import (
    ContextOverflow,
    DraftdError,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    Unreachable,
)
from draftd.ipc.messages import Done, Status, Tokens

DEFAULT_TOKENS = 4096  # of an answer whose length nobody named; the context may end it before
RETRY_AFTER = "2"  # seconds, where the daemon gives no hint
STATUSES = {  # the HTTP status of an error, and OpenAI's type for it; the first that fits
    ContextOverflow: (400, "invalid_request_error"),
    InvalidRequest: (400, "invalid_request_error"),
    ModelNotFound: (404, "invalid_request_error"),
    Overloaded: (503, "overloaded_error"),
    Unreachable: (503, "server_error"),
    EngineFailed: (503, "server_error"),
}


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
        ready = status.state == "ready"
        body = {"status": "ok" if ready else status.state, "detail": status.detail, "pair": status.pair}
        return JSONResponse(body, 200 if ready else 503)

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return (await client.status(full=True)).model_dump(exclude={"id", "type"})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        status = await client.status(full=True)
        registry = CollectorRegistry()
        registry.register(Daemon(lambda: status))
        return PlainTextResponse(generate_latest(registry).decode())

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def missing(path: str) -> JSONResponse:
        sentence = (
            f"/v1/{path} is not here: draftd answers /v1/models, /v1/chat/completions and /v1/completions. "
            "It serves one text model, which has no embeddings, images, audio, files or stored responses."
        )
        return _error(501, sentence, "not_implemented_error", None)

    return app


async def _respond(
    client: AsyncClient, kind: answers.Kind, body: types.Chat | types.Completion, request: Request
) -> Response:
    """Ask the daemon, once for each of the `n` answers; their prompt is computed once."""
    fields = types.generate(body, DEFAULT_TOKENS)
    asked = [dict(fields) for _ in range(body.answers)]
    for index, each in enumerate(asked):
        if "seed" in each:
            each["seed"] += index  # so that each answer can be had again alone
    name = "chatcmpl-" if kind == "chat" else "cmpl-"
    # Apps send the name of whatever model they were written for; there is one here, and it answers.
    head = Head(kind, name + secrets.token_hex(12), int(time.time()), body.model or "draftd")
    # A wrong request, or a daemon that is away, must still be an HTTP error: wait for the first event.
    events = _merged(client, asked)
    try:
        first = await _unless_gone(anext(events), request)
    except BaseException:
        await events.aclose()
        raise
    if body.stream:
        media = "text/event-stream"
        return StreamingResponse(_stream(head, first, events, body), media_type=media, headers=UNBUFFERED)
    made = [Answer() for _ in asked]
    async with aclosing(events):
        made[first[0]].add(first[1])
        while not all(answer.done for answer in made):
            index, event = await _unless_gone(anext(events), request)
            made[index].add(event)
    return JSONResponse(answers.whole(head, made))


UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
Indexed = tuple[int, Tokens | Done]


async def _merged(client: AsyncClient, asked: list[dict[str, Any]]) -> AsyncGenerator[Indexed, None]:
    """Events of several answers as they come; leaving early cancels them all."""
    queue: asyncio.Queue[Indexed | BaseException] = asyncio.Queue()

    async def one(index: int, fields: dict[str, Any]) -> None:
        try:
            async with aclosing(client.generate(**fields)) as stream:
                async for event in stream:
                    await queue.put((index, event))
        except DraftdError as error:
            await queue.put(error)

    tasks = [asyncio.create_task(one(index, fields)) for index, fields in enumerate(asked)]
    open_ = len(tasks)
    try:
        while open_:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            open_ -= isinstance(item[1], Done)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _unless_gone(work: Any, request: Request) -> Indexed:
    """Wait for an event, but not longer than the app waits for us: its leaving cancels the request."""
    task = asyncio.ensure_future(work)
    while True:
        finished, _ = await asyncio.wait({task}, timeout=0.2)
        if finished:
            return task.result()  # type: ignore[no-any-return]
        if await request.is_disconnected():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise asyncio.CancelledError


async def _stream(
    head: Head, first: Indexed, events: AsyncGenerator[Indexed, None], body: types.Sampling
) -> AsyncGenerator[str, None]:
    """Server-sent events as OpenAI sends them; an error becomes an event of its own, then the stream ends."""
    ended: list[Done] = []
    async with aclosing(events):
        for index in range(body.answers):
            if (chunk := answers.opening(head, index)) is not None:
                yield _event(chunk)
        item: Indexed | None = first
        try:
            while item is not None:
                index, event = item
                if isinstance(event, Done):
                    ended.append(event)
                    yield _event(answers.closing(head, index, event))
                elif event.text or event.logprobs:
                    yield _event(answers.piece(head, index, event, body.mark_drafted))
                item = await anext(events, None)
        except DraftdError as error:
            _, kind = _status(error)
            yield _event({"error": _body(error.message, kind, error.code)})
            return
        if body.wants_usage:
            yield _event(answers.usage_chunk(head, ended))
        yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _model(status: Status) -> dict[str, Any]:
    return {"id": status.pair, "object": "model", "created": 0, "owned_by": "draftd"}


def _status(error: DraftdError) -> tuple[int, str]:
    return next((found for kind, found in STATUSES.items() if isinstance(error, kind)), (500, "server_error"))


def _body(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": code}


def _error(status: int, message: str, kind: str, code: str | None, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": _body(message, kind, code, param)}, status)


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DraftdError)
    status, kind = _status(error)
    code = "context_length_exceeded" if isinstance(error, ContextOverflow) else error.code
    reply = _error(status, error.message, kind, code)
    if status == 503:
        hint = error.retry_after if isinstance(error, Overloaded) else None
        reply.headers["Retry-After"] = RETRY_AFTER if hint is None else str(max(1, round(hint)))
    return reply


async def _on_wrong_body(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return _error(400, f"{where}: {first['msg']}", "invalid_request_error", None, where or None)
