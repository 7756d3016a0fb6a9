"""Text to token ids and back with a GGUF's own vocabulary, giving what transformers' tokenizer gives."""

from __future__ import annotations

import codecs
import ctypes
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp

from draftd.ipc.errors import InvalidRequest
from draftd.models import native
from draftd.models.llama_load import load_model

_UNUSED = 1 << 1  # llama_token_attr: ids that pad the vocabulary, or that nobody trained
_MISTAKEN = re.compile(r"control-looking token: +(\d+) ")


class GGUFTokenizer:
    """models.base.Tokenizer over a GGUF's vocabulary, loaded without the weights.

    Its calls read the vocabulary only and compute nothing, so they need not run on llama.cpp's thread.
    """

    def __init__(self, path: Path) -> None:
        """Load the vocabulary; raises as LlamaTarget.load does."""
        model = native.run(load_model, path, vocab_only=True)
        # With it at the latest: a draft that comes and goes with the machine's memory brings one each time.
        self._free = weakref.finalize(self, llama_cpp.llama_model_free, model)
        self._free.atexit = False  # then all goes, and some thread may be reading
        # llama.cpp takes some ordinary entries for control tokens by their text: "</s>" in Qwen's vocabulary
        self._ordinary = frozenset(int(token) for token in _MISTAKEN.findall(native.complaints()))
        self._vocab: int = llama_cpp.llama_model_get_vocab(model)
        total: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.size = total
        while self.size and llama_cpp.llama_vocab_get_attr(self._vocab, self.size - 1) & _UNUSED:
            self.size -= 1
        stops = (token for token in range(total) if llama_cpp.llama_vocab_is_eog(self._vocab, token))
        self.stop_ids = frozenset(stops) - self._ordinary
        self._template: bytes | None = llama_cpp.llama_model_chat_template(model, None)
        self._tool_template: bytes | None = llama_cpp.llama_model_chat_template(model, b"tool_use")
        self._controls = self._control_pattern(total) if self._ordinary else None

    def encode(self, text: str) -> list[int]:
        """A plain prompt's ids, with the model's own leading tokens if it wants any."""
        return self._tokenize(text, add_special=True)

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), *, answer: bool = True
    ) -> str:
        """A conversation's text through the model's chat template; InvalidRequest says why it can't be."""
        # Not at the top: it takes the better part of a second, which who reads a vocabulary need not pay.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._tool_template if tools and self._tool_template else self._template
        if not template:
            raise InvalidRequest("the model has no chat template: give `prompt` instead of `messages`")
        special_texts: dict[str, Any] = self._special_texts()
        try:
            rendered = render_jinja_template(
                [list(messages)],
                tools=list(tools) or None,
                chat_template=template.decode("utf-8"),
                add_generation_prompt=answer,
                **special_texts,
            )
        except (TemplateError, TypeError) as error:  # TypeError: it adds up what can't be
            raise InvalidRequest(f"the model's chat template refused the messages: {error}") from None
        return str(rendered[0][0])

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """A conversation's ids, ending where the answer begins."""
        return self._tokenize(self.render(messages, tools), add_special=False)

    def piece(self, token: int) -> str:
        """The token's raw vocabulary entry, as the file spells it."""
        text: bytes = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def plain(self, text: str) -> list[int]:
        """A text's ids and nothing else: no leading tokens, and none for what looks like a control token."""
        return self._native_tokenize(text, add_special=False, parse_special=False)

    def stream(self, behind: Sequence[int] = ()) -> GGUFTextStream:
        """A fresh decoder for one answer; llama.cpp gives a token's text whatever stands before it."""
        return GGUFTextStream(self)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes a token adds to the text; none for control tokens."""
        ordinary = token in self._ordinary
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length: int = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, ordinary)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    def close(self) -> None:
        """Free the vocabulary; a second call does nothing."""
        self._free()

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        if self._controls is None or not any(self.piece(token) in text for token in self._ordinary):
            return self._native_tokenize(text, add_special, parse_special=True)
        tokens = self._native_tokenize("", add_special, parse_special=True)
        for index, part in enumerate(self._controls.split(text)):  # text, control, text, control ... text
            tokens += self._native_tokenize(part, add_special=False, parse_special=index % 2 == 1)
        return tokens

    def _native_tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (llama_cpp.llama_token * room)()
            count: int = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count

    def _control_pattern(self, total: int) -> re.Pattern[str]:
        controls = (
            self.piece(token)
            for token in range(total)
            if llama_cpp.llama_vocab_is_control(self._vocab, token) and token not in self._ordinary
        )
        longest_first = sorted(controls, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _special_texts(self) -> dict[str, str]:
        named = {
            "bos_token": llama_cpp.llama_vocab_bos(self._vocab),
            "eos_token": llama_cpp.llama_vocab_eos(self._vocab),
            "pad_token": llama_cpp.llama_vocab_pad(self._vocab),
        }
        return {name: self.piece(token) for name, token in named.items() if token >= 0}


class GGUFTextStream:
    """One answer's text: whole characters as they become complete, control tokens silent."""

    def __init__(self, tokenizer: GGUFTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that became complete with this token, possibly empty."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def flush(self) -> str:
        """What is left at the end: incomplete bytes as U+FFFD."""
        return self._decoder.decode(b"", final=True)
