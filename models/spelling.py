"""A vocabulary as bytes: what each token adds to a text, and how a text is spelled in its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

from draftd.models.base import Tokenizer

_STRAY = re.compile("([\udc80-\udcff]+)")  # bytes that are no UTF-8, as `surrogateescape` shows them


class Spelling:
    """The texts of all tokens of a tokenizer; reading them takes up to a second."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.texts = [tokenizer.bytes_of(token) for token in range(tokenizer.size)]  # control tokens: empty
        # what a prompt begins with, whatever it says
        self.leading = tokenizer.encode("")
        self.controls = {
            piece: token
            for token, text in enumerate(self.texts)
            if not text and (piece := tokenizer.piece(token))
        }
        self._tokenizer = tokenizer
        self._bytes = {text: token for token, text in reversed(list(enumerate(self.texts))) if len(text) == 1}

    def text(self, token: int) -> bytes:
        """What a token adds to a text: nothing if it is a control token or beyond the vocabulary."""
        return self.texts[token] if token < len(self.texts) else b""

    def join(self, tokens: Sequence[int]) -> bytes:
        """The text of tokens."""
        return b"".join([self.text(token) for token in tokens])

    def spell(self, text: bytes) -> list[int]:
        """The tokens that the tokenizer makes of a text, which may begin or end within a character.

        Bytes that it can't spell are left out.
        """
        tokens: list[int] = []
        for part in _STRAY.split(text.decode("utf-8", "surrogateescape")):
            if part:
                tokens += self._spell(part)
        return tokens

    def ids(self) -> dict[bytes, int]:
        """The token of each text; of several with the same text the one that the tokenizer itself takes."""
        found: dict[bytes, int] = {}
        several: set[bytes] = set()
        for token, text in enumerate(self.texts):
            if text and found.setdefault(text, token) != token:
                several.add(text)
        for text in several:
            if len(spelled := self.spell(text)) == 1:
                found[text] = spelled[0]
        return found

    def _spell(self, part: str) -> list[int]:
        data = part.encode("utf-8", "surrogateescape")
        if not _STRAY.match(part):
            tokens = self._tokenizer.plain(part)
            if self.join(tokens) == data:
                return tokens
            # Some vocabularies put a space before a text; behind a line it does no harm.
            tokens = self._tokenizer.plain("\n" + part)
            for index in range(1, min(3, len(tokens)) + 1):
                if self.join(tokens[index:]) == data and self.join(tokens[:index]).endswith(b"\n"):
                    return tokens[index:]
        return [self._bytes[byte] for byte in map(bytes, zip(data)) if byte in self._bytes]
