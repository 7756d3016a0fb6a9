"""Records a command in a real terminal as an animated SVG: record.py FILE.svg "what was typed" COMMAND…

What it writes appears in the command's own time; only a wait of more than a second in which the text does not
grow (a spinner that turns) is cut to one. The picture scrolls as a terminal does.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from xml.sax.saxutils import escape

import pyte

COLUMNS, ROWS, VIEW = 92, 400, 26  # the recorded terminal never scrolls; the picture shows VIEW of its rows
WIDE, HIGH, EDGE = 8.4, 18, 14  # pixels: a column, a row, the margin
BEGIN, WAIT, HOLD = 0.6, 1.0, 6.0  # seconds: before the first line, the longest wait, the end
STEP = 0.04  # seconds: what happens within is shown at once
COLOURS = {
    "default": "#d5dede", "green": "#4ade9f", "red": "#ff8f80", "brown": "#e5c06e", "blue": "#7fb3ff",
    "magenta": "#d8a0f0", "cyan": "#5ecfd8", "white": "#ffffff", "black": "#66757a",
}  # fmt: skip
STYLE = (
    "text{font:14px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace}.b{font-weight:700}"
    "@media(prefers-reduced-motion:reduce){*{animation:none!important}}"
)
Look = tuple[str, bool]  # colour, bold
Cell = tuple[str, Look]


@dataclass
class Recording:
    """Every cell that was ever shown, and from when to when (seconds; None: until the end)."""

    shown: dict[tuple[int, int], tuple[Cell, float]] = field(default_factory=dict)
    past: list[tuple[int, int, Cell, float, float | None]] = field(default_factory=list)
    rows: list[tuple[float, int]] = field(default_factory=list)  # when the text came to reach so many
    end: float = 0.0

    def look(self, screen: pyte.Screen, now: float) -> None:
        """Compare the rows that changed with what is known of them."""
        for row, column in product(screen.dirty, range(COLUMNS)):
            char = screen.buffer[row][column]
            cell = (char.data, (COLOURS.get(char.fg, COLOURS["default"]), char.bold))
            was = self.shown.get((row, column))
            if was is not None and was[0] == cell:
                continue
            if was is not None:
                self.past.append((row, column, *self.shown.pop((row, column)), now))
            if char.data.strip():
                self.shown[row, column] = (cell, now)
        screen.dirty.clear()
        reached = max((row for row, _ in self.shown), default=0) + 1
        if not self.rows or reached > self.rows[-1][1]:
            self.rows.append((now, reached))
        self.end = now

    def runs(self) -> Iterator[tuple[int, int, str, Look, float, float | None]]:
        """Cells side by side that look, come and go alike, as one text."""
        cells = [*self.past, *((row, column, *each, None) for (row, column), each in self.shown.items())]
        cells = [each for each in cells if each[3] != each[4]]
        cells.sort(key=lambda each: (each[0], each[3], each[4] or 1e9, each[2][1], each[1]))
        alike = groupby(enumerate(cells), lambda at: (at[1][0], *at[1][3:], at[1][2][1], at[1][1] - at[0]))
        for (row, since, until, look, _), group in alike:
            found = [each for _, each in group]
            yield row, found[0][1], "".join(each[2][0] for each in found), look, since, until


def record(name: str, command: Sequence[str]) -> Recording:
    """Run a command in a terminal of its own; raises CalledProcessError if it fails."""
    screen, recording = pyte.Screen(COLUMNS, ROWS), Recording()
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {name}\r\n".encode())
    recording.look(screen, 0.0)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    began, grown, furthest = time.monotonic() - BEGIN, 0.0, (0, 0)
    while data := _read(ours):
        now = time.monotonic() - began
        if now > grown + WAIT:
            began += now - grown - WAIT
            now = grown + WAIT
        stream.feed(data)
        if (place := (screen.cursor.y, screen.cursor.x)) > furthest:
            furthest, grown = place, now
        recording.look(screen, round(now / STEP) * STEP)
    os.close(ours)
    if child.wait():
        raise subprocess.CalledProcessError(child.returncode, command)
    return recording


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so where the last program has closed the terminal
        return b""


def svg(recording: Recording, typed: str) -> str:
    """The picture; without animation, for who wants none, it shows the end."""
    whole = recording.end + HOLD
    frames: dict[tuple[float, float | None], str] = {}
    texts = []
    for row, column, text, (colour, bold), since, until in recording.runs():
        kind = frames.setdefault((since, until), f"k{len(frames)}")
        texts.append(
            f'<text class="{kind}{" b" if bold else ""}" x="{column * WIDE:.1f}" y="{13 + row * HIGH}" '
            f'fill="{colour}" textLength="{len(text) * WIDE:.1f}">{escape(text)}</text>\n'
        )
    rules = [STYLE]
    for (since, until), kind in frames.items():
        stops = [f"{100 * since / whole:.2f}%{{visibility:visible}}"]
        if until is not None:
            stops.append(f"{100 * until / whole:.2f}%{{visibility:hidden}}")
        rules.append(f"@keyframes {kind}{{0%{{visibility:hidden}}{''.join(stops)}}}")
        rest = "" if until is None else ";visibility:hidden"
        rules.append(f".{kind}{{animation:{kind} {whole:.1f}s step-end infinite{rest}}}")
    scrolled = [(when, (reached - VIEW) * HIGH) for when, reached in recording.rows if reached > VIEW]
    moves = [f"{100 * when / whole:.2f}%{{transform:translateY(-{by}px)}}" for when, by in scrolled]
    rules.append(f"@keyframes s{{0%{{transform:none}}{''.join(moves)}}}")
    last = scrolled[-1][1] if scrolled else 0
    rules.append(f"#s{{animation:s {whole:.1f}s step-end infinite;transform:translateY(-{last}px)}}")
    wide, high = round(COLUMNS * WIDE), min(VIEW, recording.rows[-1][1]) * HIGH
    outer = (wide + 2 * EDGE, high + 2 * EDGE)
    size = 'width="{}" height="{}"'.format(*outer)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {outer[0]} {outer[1]}" {size} '
        f'role="img" aria-label="{escape(typed)}, recorded"><style>{"".join(rules)}</style>'
        f'<rect {size} rx="10" fill="#101615"/><svg x="{EDGE}" y="{EDGE}" width="{wide}" height="{high}">'
        f'<g id="s">\n{"".join(texts)}</g></svg></svg>\n'
    )


if __name__ == "__main__":
    _, file, typed, *command = sys.argv
    Path(file).write_text(svg(record(typed, command), typed), "utf-8")
