"""`make demo`: fetch a small pair, start a daemon, ask it as an app would, show what drafting gained."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from draftd.daemon.bench_table import speed
from draftd.daemon.private import private_daemon
from draftd.daemon.timed import Answer, ask
from draftd.ipc.client import Client
from draftd.ipc.errors import DraftdError, EngineFailed
from draftd.ipc.messages import Tokens

PAIR = "smollm2"
QUESTION = "Write a Python function that returns the n-th Fibonacci number, then explain it in two sentences."
REQUEST: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0, "seed": 1}
LENGTH = 128  # tokens


def main() -> int:
    """Run the demo; its exit status."""
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    pulled = subprocess.run([sys.executable, "-P", "-m", "draftd.daemon.cli", "models", "pull", PAIR])
    if pulled.returncode != 0:
        return pulled.returncode  # it has said why
    try:
        with ExitStack() as stack:
            with console.status("starting a daemon") as shown:
                daemon = private_daemon(
                    PAIR, lambda status: shown.update(f"starting a daemon: {status.detail}"), cold=True
                )
                endpoint = stack.enter_context(daemon)
            console.print(f"a daemon serves [bold]{PAIR}[/] at {endpoint}", soft_wrap=True)
            demonstrate(console, endpoint)
        console.print("the daemon is stopped")
    except DraftdError as error:
        errors.print(f"demo: {error.message}", soft_wrap=True, markup=False)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


def demonstrate(console: Console, endpoint: str) -> None:
    """Ask the same question twice, with the draft and without, and compare."""

    def show(event: Tokens) -> None:
        console.print(coloured(event), end="", soft_wrap=True)
        console.file.flush()

    with Client(endpoint) as client:
        if refused := client.status().engine.get("draft_refused"):
            raise EngineFailed(f"the pair's draft was not loaded: {refused}")
        for speculate in (True, False):  # the first passes of a process are slower than those that follow
            ask(client, **REQUEST, max_tokens=4, speculate=speculate)
        console.print(f"\n[bold]{QUESTION}[/]\n")
        console.print("with the draft, tokens that it proposed in green:", style="dim")
        drafted = ask(client, show, **REQUEST, max_tokens=LENGTH, speculate=True)
        console.print("\n\nthe target alone:", style="dim")
        plain = ask(client, show, **REQUEST, max_tokens=LENGTH, speculate=False)
        console.print("\n")
    console.print(comparison(drafted, plain))
    console.print(verdict(drafted, plain))


def coloured(event: Tokens) -> Text:
    """A message's text, green where the draft had proposed it, if the daemon tells which part is which."""
    if len(event.lengths) != len(event.drafted):
        return Text(event.text)
    text, at = Text(), 0
    for length, drafted in zip(event.lengths, event.drafted, strict=True):
        text.append(event.text[at : at + length], style="green" if drafted else None)
        at += length
    return text.append(event.text[at:])


def comparison(drafted: Answer, plain: Answer) -> Table:
    table = Table()
    for heading in ("", "tokens/s", "tokens/pass", "first token", "whole answer"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, answer in (("with the draft", drafted), ("the target alone", plain)):
        table.add_row(
            name,
            f"{speed([answer]):.1f}",
            f"{answer.made / answer.stats.rounds:.2f}",
            f"{answer.first_seconds * 1000:.0f} ms",
            f"{answer.seconds:.1f} s",
        )
    return table


def verdict(drafted: Answer, plain: Answer) -> str:
    """Two sentences of result."""
    stats = drafted.stats
    share = f" ({stats.accepted / stats.drafted:.0%})" if stats.drafted else ""
    ratio = speed([drafted]) / speed([plain])
    same = "the same text" if drafted.text == plain.text else "another text (16-bit near ties may flip)"
    return (
        f"accepted {stats.accepted} of {stats.drafted} drafted tokens{share}: "
        f"[bold]{ratio:.2f}x[/] the speed of the target alone, and {same}"
    )


if __name__ == "__main__":
    sys.exit(main())
