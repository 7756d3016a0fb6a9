"""An answer's text as it comes, told apart into what the model says and the tools it calls.

It is pure: what comes out depends on the text alone, not on how it was cut. The text follows the grammar of
models/tools.py; any other is read without an error, as far as it looks like calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from draftd.models.tools import Form


@dataclass(frozen=True, slots=True)
class CallPart:
    """A piece of a call: its name first, once, then its arguments' text."""

    index: int  # of the call in its answer
    name: str | None
    arguments: str

    @property
    def size(self) -> int:
        """Characters of it."""
        return len(self.name or "") + len(self.arguments)

    def behind(self, known: int) -> CallPart:
        """The rest of a piece of which so many characters are known."""
        if self.name is None or known == 0:
            return CallPart(self.index, self.name, self.arguments[known:])
        return CallPart(self.index, None, self.arguments[max(0, known - len(self.name)) :])


Part = str | CallPart


class Calls:
    """Text in, parts out; what can't be told yet is held back."""

    def __init__(self, form: Form, bound: bool = False) -> None:
        """`bound`: an answer without calls follows a schema, in which what opens a call may stand."""
        self._form = form
        # Where a text comes first, the line break before a call is the form's, not the text's.
        self._openings = (f"\n{form.opening}", form.opening) if form.opening else ()
        free = form.opening and not bound
        self._read: Callable[[], list[Part] | None] = self._text if free else self._start
        self._held = ""
        self._nesting = 0  # of the arguments: open objects and lists
        self._quoted = False  # in a string
        self._escaped = False  # behind a backslash
        self.begun = 0  # calls whose name was told
        self.whole = 0  # calls whose arguments are complete

    def push(self, text: str) -> list[Part]:
        """What this text made clear, in order."""
        self._held += text
        parts: list[Part] = []
        while (step := self._read()) is not None:
            parts += step
        return parts

    def flush(self) -> list[Part]:
        """What was held back, at the end; a call that was cut off before its name was told is dropped."""
        rest, self._held = self._held, ""
        return [rest] if rest and self._read == self._text else []

    @property
    def made(self) -> bool:
        """Whether there is a call, and none that was cut off."""
        return 0 < self.begun == self.whole

    # Each state reads what it can off the held text. None: it needs more of it.

    def _start(self) -> list[Part] | None:
        """Its first character tells whether a whole answer is calls or none of it is."""
        if not self._held:
            return None
        if self._held[0] != (self._form.opening or self._form.head)[0]:
            self._read = self._rest
        else:
            self._read = self._text if self._form.opening else self._header
        return []

    def _rest(self) -> list[Part] | None:
        text, self._held = self._held, ""
        return [text] if text else None

    def _text(self) -> list[Part] | None:
        found = [(at, each) for each in self._openings if (at := self._held.find(each)) >= 0]
        if found:
            at, opening = min(found)
            text, self._held = self._held[:at], self._held[at + len(opening) :]
            self._read = self._header
            return [text] if text else []
        keep = max(overlap(self._held, each) for each in self._openings)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return [text] if text else None

    def _header(self) -> list[Part] | None:
        """All that stands before the arguments; it is told once they begin."""
        begin = self._held.find(self._form.middle)
        if begin < 0:
            return None
        name = self._held[:begin].removeprefix(self._form.head)
        self._held = self._held[begin + len(self._form.middle) :]
        self._nesting, self._quoted, self._escaped = 0, False, False
        self._read = self._arguments
        self.begun += 1
        return [CallPart(self.begun - 1, name, "")]

    def _arguments(self) -> list[Part] | None:
        """A JSON value ends where its brackets are closed."""
        if not self._held:
            return None
        end = self._end()
        text, self._held = self._held[:end], self._held[end:] if end is not None else ""
        if end is not None:
            self.whole += 1
            self._read = self._tail
        return [CallPart(self.begun - 1, None, text)]

    def _end(self) -> int | None:
        """Where in the held text the arguments end; None: behind it."""
        for at, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._nesting += 1
            elif character in "}]":
                self._nesting -= 1
                if self._nesting <= 0:
                    return at + 1
        return None

    def _tail(self) -> list[Part] | None:
        """What closes a call."""
        if len(self._held) < len(self._form.tail):
            return None
        self._held = self._held.removeprefix(self._form.tail)
        self._read = self._next if self._form.opening else self._rest
        return []

    def _next(self) -> list[Part] | None:
        """Another call, or a text that is none of the form's."""
        mark = (self._form.between or "") + self._form.opening
        if self._held.startswith(mark):
            self._held = self._held.removeprefix(mark)
            self._read = self._header
            return []
        if mark.startswith(self._held):
            return None
        self._read = self._text
        return []


def overlap(text: str, mark: str) -> int:
    """The longest proper prefix of `mark` that `text` ends with."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
