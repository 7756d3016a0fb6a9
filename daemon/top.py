"""`draftd top`: what the daemon is doing, looked at anew every second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from draftd.daemon.options import Endpoint
from draftd.daemon.terminal import shown
from draftd.ipc.client import Client
from draftd.ipc.errors import DraftdError, Unreachable
from draftd.ipc.messages import Status

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 86_400  # seconds between two looks


def top(
    endpoint: Endpoint = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
) -> None:
    """Watch requests, speeds, acceptance and memory, live; Ctrl-C ends it."""
    if not every <= LONGEST:  # nan is in no range, and not out of one
        raise typer.BadParameter(f"--every {every}: should be seconds from 0.1 to {LONGEST}")
    console = Console()
    with Client(endpoint, name="draftd top") as client:
        speed = Speed()
        first = client.status(full=True)  # no daemon: an error, where later it is a state to watch
        speed.add(first, time.monotonic())
        if once or not console.is_terminal:
            console.print(view(first, speed.now))
            return
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(view(first, speed.now), console=console, screen=True, auto_refresh=False) as live,
        ):
            live.refresh()
            while True:
                time.sleep(every)
                live.update(_look(client, speed), refresh=True)


class Speed:
    """Tokens a second between two looks, over all requests."""

    def __init__(self) -> None:
        self.now = 0.0
        self._last: tuple[float, int] | None = None  # seconds, tokens so far

    def add(self, status: Status, seconds: float) -> None:
        ended = status.counters.get("tokens", {}).get("completion", 0)
        total = ended + sum(each["tokens"] for each in status.active)
        if self._last is not None and seconds > self._last[0]:
            # An abandoned request takes its tokens out of the sum: no speed is below nothing.
            self.now = max(0.0, (total - self._last[1]) / (seconds - self._last[0]))
        self._last = (seconds, total)


def view(status: Status, tokens_per_second: float) -> RenderableType:
    """The whole screen."""
    return Group(_head(status, tokens_per_second), Text(), _requests(status), Text(), _acceptance(status))


def _look(client: Client, speed: Speed) -> RenderableType:
    try:
        status = client.status(full=True)
    except Unreachable as error:
        return Text(error.message, style="red")
    except DraftdError as error:
        return Text(f"{error.code}: {error.message}", style="red")
    speed.add(status, time.monotonic())
    return view(status, speed.now)


def _head(status: Status, tokens_per_second: float) -> RenderableType:
    table = Table.grid(padding=(0, 3))
    colour = {"ready": "green", "failed": "red"}.get(status.state, "yellow")
    words = status.detail or status.state
    requests, limits, counters = status.requests, status.limits, status.counters
    what = ", ".join(str(status.engine[name]) for name in ("backend", "dtype") if status.engine.get(name))
    table.add_row(
        Text(status.pair, style="bold"), Text(words, style=colour), what, f"up {_age(status.uptime_seconds)}"
    )
    memory = ", ".join(f"{name} {_size(size)}" for name, size in status.memory.items())
    table.add_row(
        Text(f"{tokens_per_second:.1f} tokens/s", style="bold"),
        f"{requests.get('running', 0)} of {limits.get('slots', 0)} slots, "
        f"{requests.get('waiting', 0)} of {limits.get('queue', 0)} queued",
        f"{requests.get('finished', 0)} finished",
        memory,
    )
    restarts = sum(counters.get("restarts", {}).values())
    if restarts:
        table.add_row(Text(f"engine restarts: {restarts}", style="yellow"))
    return table


def _requests(status: Status) -> RenderableType:
    if not status.active:
        return Text("no requests", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    table.add_column("request", justify="right")
    table.add_column("app", max_width=24, no_wrap=True)
    table.add_column("state")
    for name in ("age", "tokens", "tokens/s", "accepted", "rate"):
        table.add_column(name, justify="right")
    for each in status.active:
        rate = f"{each['accepted'] / each['drafted']:.0%}" if each["drafted"] else "-"
        table.add_row(
            str(each["request"]),
            Text(shown(each["app"]) or "-"),  # an app's own word: never markup
            each["state"],
            _age(each["seconds"]),
            str(each["tokens"]),
            f"{each['tokens_per_second']:.1f}",
            str(each["accepted"]),
            rate,
        )
    return table


def _acceptance(status: Status) -> RenderableType:
    """By source: how many drafted tokens were accepted, and how that falls from position to position."""
    counters = status.counters
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name in ("source", "drafted", "accepted", "rate"):
        table.add_column(name, justify="left" if name == "source" else "right")
    table.add_column("by position")
    for source, drafted in sorted(counters.get("drafted", {}).items()):
        accepted = counters["accepted"][source]
        tried, agreed = sum(drafted), sum(accepted)
        table.add_row(
            source,
            str(tried),
            str(agreed),
            f"{agreed / tried:.0%}" if tried else "-",
            "".join(_bars(drafted, accepted)),
        )
    if not table.row_count:
        return Text("nothing drafted yet", style="dim")
    return table


def _bars(drafted: list[int], accepted: list[int]) -> Iterator[str]:
    for tried, agreed in zip(drafted, accepted, strict=True):
        yield BARS[min(int(agreed / tried * len(BARS)), len(BARS) - 1)] if tried else " "


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min" if hours == 0 else f"{hours} h {minutes % 60} min"


def _size(size: Any) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
