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
        self.stopped = False

    def push(self, token: int) -> str:
        """The text this token released; a complete stop string sets `stopped` and the text ends before it."""
        return self._release(self._stream.push(token))

    def flush(self) -> str:
        """What was held back, at the end of an answer that met no stop string."""
        if self.stopped:
            return ""
        text = self._release(self._stream.flush())
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

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
