"""`draftd run`: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import Annotated, Any

import typer

from draftd.daemon import terminal
from draftd.daemon.options import Endpoint, Stats, System, asks, given
from draftd.ipc.client import Client
from draftd.ipc.errors import InvalidRequest
from draftd.ipc.messages import Done, Tokens
from draftd.ipc.session import Answer, Reply, reply


@asks
def run(
    params: dict[str, Any],
    prompt: Annotated[
        str | None,
        typer.Argument(help="What to ask; `-` or none: standard input. With both they are joined."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--n", min=1, max=128, help="So many answers, one after the other.")
    ] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, max=64, help="Search with so many beams instead of choosing.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=0, max=20, help="List each token's log-probability and so many alternatives (standard error)."
        ),
    ] = None,
    system: System = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without a chat template.")
    ] = False,
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
    params |= given(n=n, beams=beams, logprobs=logprobs)
    if raw:
        params["prompt"] = text
    else:
        turns = [("system", system), ("user", text)]
        params["messages"] = [{"role": role, "content": words} for role, words in turns if words is not None]
    with Client(endpoint) as client:
        terminal.wait_until_ready(client)
        answer = _ask(client, params, show=not as_json)
    if as_json:
        print(json.dumps(_object(answer, logprobs is not None), ensure_ascii=False))
    elif logprobs is not None:
        for each in answer.answers:
            print(terminal.table(each.logprobs), file=sys.stderr)
    if stats:
        for each in answer.answers:
            print(terminal.summary(len(each.tokens), each.stats), file=sys.stderr)


def _input(prompt: str | None, raw: bool) -> str:
    """The prompt, standard input, or both with a blank line between."""
    if prompt == "-":
        prompt = None
    piped = ""
    unpiped = sys.stdin is None or sys.stdin.isatty()  # None: it was closed
    if prompt is None or not unpiped:
        if unpiped:
            raise typer.BadParameter('nothing to ask: draftd run "PROMPT", or pipe it in')
        try:
            piped = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError:
            raise InvalidRequest("standard input is not UTF-8 text") from None
    text = "\n\n".join(part for part in (prompt, piped if raw else piped.strip()) if part)
    if not text:
        raise typer.BadParameter("nothing to ask: the prompt and standard input are both empty")
    return text


def _ask(client: Client, params: dict[str, Any], show: bool) -> Reply:
    """The whole reply; its text is shown as it comes, of several answers one after the other."""
    parts: list[Tokens] = []
    shown = Shown(params.get("n", 1) if show else 0)
    with closing(client.generate(**params)) as events:  # leaving early, by Ctrl-C or a closed pipe, cancels
        for event in events:
            if isinstance(event, Done):
                break
            parts.append(event)
            shown.add(event)
    assert isinstance(event, Done)
    shown.end()
    return reply(parts, event)


class Shown:
    """Answers on standard output: one as it comes, those behind it when it has ended."""

    def __init__(self, count: int) -> None:
        self.texts = [""] * count  # still to be shown
        self.ended = [False] * count
        self.current = -1
        self.newline = False  # even an empty answer is a line

    def add(self, event: Tokens) -> None:
        if not self.texts:
            return
        self.texts[event.index] += event.text
        self.ended[event.index] = event.finish_reason is not None
        if self.current < 0:
            self._next()
        self._write()
        while self.ended[self.current] and self.current + 1 < len(self.texts):
            self._next()
            self._write()

    def end(self) -> None:
        """The stream is over: what has not been shown, and the end of the last line."""
        if self.texts:
            while self.current + 1 < len(self.texts):
                self._next()
                self._write()
            self._break()

    def _write(self) -> None:
        text, self.texts[self.current] = self.texts[self.current], ""
        if text:
            self.newline = text.endswith("\n")
            sys.stdout.write(text)
            sys.stdout.flush()

    def _next(self) -> None:
        if self.current >= 0:
            self._break()
        self.current += 1
        if len(self.texts) > 1:
            print(f"--- {self.current + 1} of {len(self.texts)} ---", flush=True)
            self.newline = True

    def _break(self) -> None:
        if not self.newline:
            print(flush=True)
            self.newline = True


def _object(answer: Reply, logprobs: bool) -> dict[str, Any]:
    """The reply as `--json` prints it; `answers` is there if there are several."""
    shown = {**_one(answer, logprobs), "usage": answer.usage.model_dump()}
    if len(answer.answers) > 1:
        shown["answers"] = [_one(each, logprobs) for each in answer.answers]
    return shown


def _one(answer: Answer, logprobs: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "text": answer.text,
        "tokens": answer.tokens,
        "finish_reason": answer.finish_reason,
        "stats": answer.stats.model_dump(),
    }
    if logprobs:
        shown["logprobs"] = [each.model_dump() for each in answer.logprobs]
    return shown
