"""`draftd run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import Annotated, Any

import typer

from draftd.daemon import terminal
from draftd.daemon.options import (
    Endpoint,
    MaxTokens,
    MinP,
    Seed,
    Speculate,
    Stats,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    given,
)
from draftd.ipc.client import Client
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.messages import Done


def run(
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask; `-` or none: standard input. With both they are joined."),
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    system: System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")
    ] = False,
    speculate: Speculate = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")
    ] = False,
    stats: Stats = False,
    endpoint: Endpoint = None,
) -> None:
    """Ask once: stream the answer to a prompt."""
    if raw and system is not None:
        raise typer.BadParameter("--system needs the chat template that --raw leaves out: give one of them")
    text = _input(prompt, raw)
    params = given(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        stop=stop, speculate=speculate,
    )  # fmt: skip
    if raw:
        params["prompt"] = text
    else:
        turns = [("system", system), ("user", text)]
        params["messages"] = [{"role": role, "content": words} for role, words in turns if words is not None]
    with Client(endpoint) as client:
        terminal.wait_until_ready(client)
        done = _whole(client, params) if as_json else _stream(client, params)
    if stats:
        print(terminal.summary(done), file=sys.stderr)


def _input(prompt: str | None, raw: bool) -> str:
    """The prompt, standard input, or both with a blank line between."""
    if prompt == "-":
        prompt = None
    piped = ""
    if prompt is None or not sys.stdin.isatty():
        if sys.stdin.isatty():
            raise typer.BadParameter('nothing to ask: draftd run "PROMPT", or pipe it in')
        try:
            piped = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise InvalidRequest("standard input is not UTF-8 text") from None
    text = "\n\n".join(part for part in (prompt, piped if raw else piped.strip()) if part)
    if not text:
        raise typer.BadParameter("nothing to ask: the prompt and standard input are both empty")
    return text


def _stream(client: Client, params: dict[str, Any]) -> Done:
    text = ""
    with closing(client.generate(**params)) as events:  # leaving early, by Ctrl-C or a closed pipe, cancels
        for event in events:
            if isinstance(event, Done):
                break
            text = event.text or text
            sys.stdout.write(event.text)
            sys.stdout.flush()
    if not text.endswith("\n"):
        print(flush=True)
    assert isinstance(event, Done)
    return event


def _whole(client: Client, params: dict[str, Any]) -> Done:
    parts = []
    for event in client.generate(**params):
        if not isinstance(event, Done):
            parts.append(event)
    assert isinstance(event, Done)
    print(
        json.dumps(
            {
                "text": "".join(part.text for part in parts),
                "tokens": [token for part in parts for token in part.tokens],
                "finish_reason": event.finish_reason,
                "usage": event.usage.model_dump(),
                "stats": event.stats.model_dump(),
            },
            ensure_ascii=False,
        )
    )
    return event
