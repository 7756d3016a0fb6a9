"""An answer's text: whole characters, held back while it may be the start of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from draftd.models.base import TextStream


class Answer:
    """Tokens in, text out; how much is released depends on the tokens alone, so it can be replayed."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self._stream = stream
        self._stops = stops
        self._held = ""
        self._again = 0  # characters that are out already and will be released again
        self.stopped = False

    def resume(self, tokens: Sequence[int], characters: int) -> None:
        """Go on behind tokens that are out already, with so many characters of text.

        These can be more than the tokens release: an end that was lost on its way had flushed the rest.
        """
        released = 0
        for token in tokens:
            released += len(self.push(token))
        self._again = max(0, characters - released)

    def push(self, token: int) -> str:
        """The text this token released; a complete stop string sets `stopped` and the text ends before it."""
        return self._new(self._release(self._stream.push(token)))

    def flush(self) -> str:
        """What was held back, at the end of an answer that met no stop string."""
        if self.stopped:
            return ""
        text = self._release(self._stream.flush())
        rest, self._held = self._held, ""
        return self._new(text if self.stopped else text + rest)

    def _new(self, text: str) -> str:
        known = min(self._again, len(text))
        self._again -= known
        return text[known:]

    def _release(self, new: str) -> str:
        text = self._held + new
        ends = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest proper prefix of `stop` that `text` ends with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
