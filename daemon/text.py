"""An answer's text: whole characters, held back while it may be the start of a stop string or of a call."""

from __future__ import annotations

from collections.abc import Sequence

from draftd.daemon.calls import CallPart, Calls, Part, overlap
from draftd.models.base import TextStream


class Answer:
    """Tokens in, text and calls out; what is released depends on the tokens alone, so it can be replayed."""

    def __init__(self, stream: TextStream, stops: Sequence[str], calls: Calls | None = None) -> None:
        """`calls` reads the tools that are called out of the text; None: it is all text."""
        self._stream = stream
        self._stops = stops
        self._calls = calls
        self._held = ""
        self._again = 0  # characters that are out already and will be released again
        self.parts: list[CallPart] = []  # of calls, released and not yet taken
        self.stopped = False

    @property
    def called(self) -> bool:
        """Whether it calls tools, and says each call to its end."""
        return self._calls is not None and self._calls.made

    def take(self) -> list[CallPart]:
        """The pieces of calls that were released since the last time."""
        parts, self.parts = self.parts, []
        return parts

    def resume(self, tokens: Sequence[int], characters: int) -> None:
        """Go on behind tokens that are out already, with so many characters of text, names and arguments.

        These can be more than the tokens release: an end that was lost on its way had flushed the rest.
        """
        released = 0
        for token in tokens:
            released += len(self.push(token)) + sum(part.size for part in self.take())
        self._again = max(0, characters - released)

    def push(self, token: int) -> str:
        """The text this token released; a complete stop string sets `stopped` and the text ends before it."""
        return self._new(self._release(self._stream.push(token)))

    def flush(self) -> str:
        """What was held back, at the end of an answer; behind a stop string nothing is."""
        text = ""
        if not self.stopped:
            text = self._release(self._stream.flush())
            if not self.stopped:
                text, self._held = text + self._held, ""
        text = self._new(text)
        return text + (self._unknown(self._calls.flush()) if self._calls is not None else "")

    def _new(self, text: str) -> str:
        return self._unknown([text] if self._calls is None else self._calls.push(text))

    def _unknown(self, parts: Sequence[Part]) -> str:
        """The text of these parts, as far as it is not out already; calls wait to be taken."""
        text = ""
        for part in parts:
            size = len(part) if isinstance(part, str) else part.size
            known = min(self._again, size)
            self._again -= known
            if isinstance(part, str):
                text += part[known:]
            elif known < size:
                self.parts.append(part.behind(known))
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        ends = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
