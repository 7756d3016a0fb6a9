"""`draftd chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from contextlib import closing
from typing import Annotated, Any

import typer

from draftd.daemon import terminal
from draftd.daemon.options import Endpoint, Stats, System, asks
from draftd.ipc.client import Client
from draftd.ipc.errors import DraftdError
from draftd.ipc.messages import Done

with contextlib.suppress(ImportError):  # some Pythons are built without it: then input() has no history
    import readline  # noqa: F401

HELP = "/reset starts over, /quit or Ctrl-D ends, Ctrl-C stops an answer"


@asks
def chat(
    params: dict[str, Any],
    system: System = None,
    show_drafts: Annotated[
        bool, typer.Option("--show-drafts", help="Show in green what the draft had proposed.")
    ] = False,
    stats: Stats = False,
    endpoint: Endpoint = None,
) -> None:
    """Talk in the terminal, turn by turn."""
    start = [] if system is None else [{"role": "system", "content": system}]
    turns = list(start)
    with Client(endpoint) as client:
        print(f"{client.status().pair}: {HELP}")
        while (line := _ask()) not in (None, "/quit"):
            if line == "/reset":
                turns = list(start)
            elif line.startswith("/"):
                print(HELP)
            elif line:
                turns += _turn(client, turns, line, params, show_drafts and terminal.colours(), stats)


def _ask() -> str | None:
    """The user's next line, None at the end of input; Ctrl-C drops what was typed."""
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()


def _turn(
    client: Client, turns: list[dict[str, str]], line: str, params: dict[str, Any], marked: bool, stats: bool
) -> list[dict[str, str]]:
    """Show the answer to a line; both as new turns, none if there was no answer."""
    text = ""
    done: Done | None = None
    question = {"role": "user", "content": line}
    try:
        terminal.wait_until_ready(client)
        with closing(client.generate(messages=[*turns, question], **params)) as events:
            for event in events:
                if isinstance(event, Done):
                    done = event
                else:
                    text += event.text
                    sys.stdout.write(terminal.marked(event) if marked else event.text)
                    sys.stdout.flush()
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    except DraftdError as error:
        typer.secho(f"draftd: {error.message}", fg="red", err=True)
    print()
    if stats and done is not None:
        print(terminal.summary(done.usage.completion_tokens, done.stats), file=sys.stderr)
    return [question, {"role": "assistant", "content": text}] if text else []
