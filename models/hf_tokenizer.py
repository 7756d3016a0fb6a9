"""The tokenizer of a transformers directory: text to ids, chat templates, and streams of whole characters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from draftd.ipc.errors import CorruptModel, InvalidRequest, ModelNotFound, UnsupportedModel

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
END_OF_TURN = (  # what ends an answer in the families' chat templates, though not always listed as an end
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)
HELD = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows bytes that aren't a character, or not yet


class HfTokenizer:
    """models/base.py's Tokenizer over the files that transformers reads."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._added = self._backend.get_added_tokens_decoder()
        self._skipped = {i for i, token in self._added.items() if token.special}
        self.size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.stop_ids = stop_ids
        # Byte fallback turns a whole run of such tokens into text at once: none of it is final before.
        run = [self._backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._byte_tokens = frozenset(run) if None not in run else frozenset()
        self._byte_of = _byte_alphabet() if "ByteLevel" in repr(self._backend.decoder) else {}

    @classmethod
    def load(cls, path: Path) -> HfTokenizer:
        """Read a model's directory; raises ModelNotFound, CorruptModel or UnsupportedModel, naming it."""
        if not any((path / name).is_file() for name in FILES):
            raise ModelNotFound(f"{path} holds no tokenizer: tokenizer.json is not there")
        # The file as it stands goes first: a family's own class may rebuild it from its vocabulary alone.
        kind: Any = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
        try:
            tokenizer = kind.from_pretrained(path, local_files_only=True)
        except Exception as error:  # the tokenizers library raises plain Exception for a file it can't read
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise CorruptModel(f"the tokenizer in {path} can't be read: {reason}; fetch it again") from error
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedModel(f"the tokenizer in {path} has no tokenizer.json nor can it be made")
        return cls(tokenizer, _stop_ids(path, tokenizer))

    def encode(self, text: str) -> list[int]:
        """A plain prompt's ids, with the model's own leading tokens if it wants any."""
        return list(self._tokenizer.encode(text))

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), *, answer: bool = True
    ) -> str:
        """A conversation's text through the model's chat template; InvalidRequest says why it can't be."""
        if not self._tokenizer.chat_template:
            raise InvalidRequest("this model has no chat template: send a prompt instead of messages")
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, add_generation_prompt=answer, tokenize=False
            )
        except (TemplateError, TypeError) as error:  # TypeError: it adds up what can't be
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error
        return text

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """A conversation's ids, ending where the answer begins."""
        # Arguments of a call may hold half of a pair of surrogates, as JSON writes it, which is no text.
        text = self.render(messages, tools).encode("utf-8", "replace").decode()
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of many tokens at once, special tokens left out."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def plain(self, text: str) -> list[int]:
        """A text's ids and nothing else: no leading tokens, and none for what looks like a control token."""
        self._backend.encode_special_tokens = True
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        finally:
            self._backend.encode_special_tokens = False

    def piece(self, token: int) -> str:
        """The token's raw vocabulary entry, as the tokenizer file spells it; empty where there is none."""
        return self._backend.id_to_token(token) or ""

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes a token adds to the text; none for control tokens."""
        piece = self.piece(token)
        if token in self._skipped:
            return b""
        if token in self._added:
            return piece.encode()
        if token in self._byte_tokens:
            return bytes([int(piece[3:5], 16)])
        if self._byte_of and all(character in self._byte_of for character in piece):
            return bytes(self._byte_of[character] for character in piece)
        return piece.replace("\u2581", " ").encode()

    def stream(self, behind: Sequence[int] = ()) -> HfTextStream:
        """A fresh decoder for one answer to a prompt of these tokens: none of its text is the answer's."""
        return HfTextStream(self, behind)

    def is_text(self, token: int) -> bool:
        """Whether a token adds to the text: neither special nor beyond the vocabulary."""
        return token not in self._skipped and self._backend.id_to_token(token) is not None

    def is_byte(self, token: int) -> bool:
        """Whether a token is a byte of a byte-fallback vocabulary."""
        return token in self._byte_tokens


class HfTextStream:
    """The text of tokens as they come; all pushes and the flush joined are `decode` of all tokens.

    Behind a prompt they are what `decode` adds to its text: a decoder drops the space of a text's first word.
    """

    def __init__(self, tokenizer: HfTokenizer, behind: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # tokens whose text is out; decoders look at what comes before
        self._before: list[int] = next(([token] for token in reversed(behind) if self._is_whole(token)), [])
        self._window: list[int] = []  # tokens whose text isn't wholly out
        self._out = len(tokenizer.decode(self._before))  # characters of before and window that are out

    def _is_whole(self, token: int) -> bool:
        """Whether a token is a text by itself, which none behind it changes."""
        if not self._tokenizer.is_text(token) or self._tokenizer.is_byte(token):
            return False
        text = self._tokenizer.decode([token])
        return bool(text) and not text.endswith(HELD)

    def push(self, token: int) -> str:
        """The text that became complete with this token, possibly empty."""
        if not self._tokenizer.is_text(token):
            return ""
        self._window.append(token)
        if self._tokenizer.is_byte(token):
            return ""
        text = self._tokenizer.decode(self._before + self._window)
        final = not text.endswith(HELD)
        new = text[self._out :] if final else text[self._out : -1]
        self._out += len(new)
        if final and new:
            self._before, self._window = self._window, []
            self._out = len(self._tokenizer.decode(self._before))
        return new

    def flush(self) -> str:
        """What is left at the end: incomplete bytes as U+FFFD."""
        rest = self._tokenizer.decode(self._before + self._window)[self._out :]
        self._before, self._window, self._out = [], [], 0
        return rest


def _byte_alphabet() -> dict[str, int]:
    """What byte each character of GPT-2's byte-level vocabularies stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(rest)}


def _stop_ids(path: Path, tokenizer: Any) -> frozenset[int]:
    """Ends as the generation settings, the configuration and the tokenizer name them, and ends of a turn."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (path / name).is_file():
            try:
                settings = json.loads((path / name).read_text("utf-8"))
            except ValueError as error:  # no JSON, or no UTF-8
                raise CorruptModel(f"{path / name} can't be read: {error}; fetch it again") from None
            for part in (settings, settings.get("text_config") or {}):
                ends = part.get("eos_token_id")
                found |= set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return frozenset(found | {number for number, token in added.items() if token.content in END_OF_TURN})
