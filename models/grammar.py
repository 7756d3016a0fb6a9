"""Structured output through llguidance: a JSON schema, a regular expression, a Lark or a GBNF grammar.

llguidance rather than xgrammar: it needs no torch, has a mask ready in microseconds without compiling the
grammar first, and its matchers are copied in microseconds, which one inside a drafted block must be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark
from numpy.typing import NDArray

from draftd.ipc.errors import InvalidRequest
from draftd.models.base import Tokenizer

Kind = Literal["json_schema", "regex", "lark", "gbnf"]


class Matcher:
    """Where one request stands in its grammar: behind its accepted tokens, and no others.

    An error of llguidance's is forgotten by a matcher that begins anew: copies share the lexer that finds it,
    so it may come of what was only drafted. One that comes again is the grammar's own.
    """

    def __init__(
        self, begin: Callable[[], llguidance.LLMatcher], vocab: int, stop_ids: Iterable[int]
    ) -> None:
        """`begin` gives a matcher at the start of the grammar."""
        self._begin = begin
        self._matcher = begin()
        self._accepted: list[int] = []
        self._words = (vocab + 31) // 32
        # what may follow drafted tokens, in bits: the draft wants it, then the check of what was drafted
        self._masks: dict[tuple[int, ...], NDArray[np.uint32]] = {}
        self._stops = np.array(sorted(stop_ids), np.int64)

    @property
    def error(self) -> str:
        """Why it can't go on, in llguidance's words; empty: it can."""
        return _error(self._matcher)

    @property
    def ended(self) -> bool:
        """Whether the grammar is complete and nothing but the end may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def accept(self, tokens: Sequence[int]) -> None:
        """Advance over accepted tokens."""
        self._masks.clear()
        count = self._matcher.try_consume_tokens(list(tokens))
        if self._matcher.is_error():
            self._begin_anew()
            count = self._matcher.try_consume_tokens(list(tokens))
        # One that comes again must be met by whoever begins anew: without these tokens it would go on.
        self._accepted += tokens if self._matcher.is_error() else tokens[:count]

    def fitting(self, tokens: Sequence[int]) -> int:
        """How many leading tokens the grammar admits from here, up to its end."""
        return self._matcher.deep_copy().try_consume_tokens(list(tokens))

    def ends(self, drafted: Sequence[int]) -> bool:
        """Whether the grammar admits nothing behind drafted tokens: they complete it, or leave it."""
        matcher = self._matcher.deep_copy()
        return matcher.try_consume_tokens(list(drafted)) < len(drafted) or matcher.is_stopped()

    def mask(self, row: NDArray[np.float32], drafted: Sequence[int] = ()) -> None:
        """Set what the grammar forbids behind `drafted` to minus infinity; it stands where it stood before.

        A row behind drafted tokens that leave the grammar stays as it is: they are refused before it counts.
        InvalidRequest if no token can follow, or llguidance gives up.
        """
        if self._mask(row, drafted):
            self._begin_anew()
            if reason := self._mask(row, drafted):
                count = len(self._accepted) + len(drafted)
                raise InvalidRequest(
                    f"grammar: the answer can't go on behind {count} tokens ({reason}): make the grammar "
                    "simpler, or see that something can follow there"
                )

    def _mask(self, row: NDArray[np.float32], drafted: Sequence[int]) -> str:
        """What `mask` does; where an error hinders it the row stays as it is, and this is the error."""
        if (known := self._masks.get(tuple(drafted))) is not None:
            _forbid(row, known)
            return ""
        # A copy goes ahead: not every grammar takes tokens back, and asking one that does not spoils it.
        matcher = self._matcher.deep_copy() if drafted else self._matcher
        if drafted and matcher.try_consume_tokens(list(drafted)) < len(drafted):
            return _error(matcher)
        if not matcher.is_stopped():
            bits = np.zeros(self._words, np.uint32)
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            if not matcher.is_error():
                self._masks[tuple(drafted)] = bits
                _forbid(row, bits)
        elif not matcher.is_error():
            ends = row[self._stops[self._stops < len(row)]].copy()
            row.fill(-np.inf)
            row[self._stops[self._stops < len(row)]] = ends
        return _error(matcher)

    def _begin_anew(self) -> None:
        self._matcher = self._begin()
        self._matcher.try_consume_tokens(self._accepted)


class Vocabulary:
    """A tokenizer as llguidance takes it, for rows of a width: what each token adds to a text.

    Not llguidance's own reading of a tokenizer's file: it keeps every added token in angle brackets out of
    texts, and `<tool_call>` is text of ours.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        self._plain = tokenizer.plain
        self.eos_token_id = min(tokenizer.stop_ids)
        self.tokens = [tokenizer.bytes_of(token) for token in range(min(tokenizer.size, vocab))]
        self.tokens += [b""] * (vocab - len(self.tokens))
        for token, text in enumerate(self.tokens):
            if not text:  # a control or padding token adds no text: this mark keeps it out of all texts
                name = tokenizer.piece(token) if token < tokenizer.size else f"[{token}]"
                self.tokens[token] = b"\xff" + name.encode()

    def __call__(self, text: bytes) -> list[int]:
        return self._plain(text.decode())


class Grammars:
    """Compiles grammars for one vocabulary; made once, since indexing a vocabulary takes a second or two."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        """`vocab`: the width of the rows. InvalidRequest if none of them can end an answer."""
        self._stop_ids = sorted(token for token in tokenizer.stop_ids if token < vocab)
        if not self._stop_ids:
            raise InvalidRequest(
                "grammar: this model has no token that ends an answer: ask without a grammar and tools"
            )
        self._vocabulary = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(Vocabulary(tokenizer, vocab)),
            n_vocab=vocab,
            eos_token=self._stop_ids,
        )

    def matcher(self, kind: Kind, source: str | dict[str, Any]) -> Matcher:
        """A matcher at the start of a grammar; InvalidRequest says what is wrong with it."""
        try:
            text = source if isinstance(source, str) else json.dumps(source)
            if kind == "json_schema":
                grammar = llguidance.LLMatcher.grammar_from_json_schema(text)
            elif kind == "regex":
                grammar = llguidance.LLMatcher.grammar_from_regex(text)
            else:
                grammar = llguidance.LLMatcher.grammar_from_lark(
                    gbnf_to_lark(text) if kind == "gbnf" else text
                )
        except (ValueError, TypeError, GbnfToLarkError) as error:  # TypeError: no JSON, as a map with bytes
            raise InvalidRequest(f"grammar: not a {kind}: {_first_line(str(error))}") from None

        def begin() -> llguidance.LLMatcher:
            return llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)

        matcher = Matcher(begin, self._vocabulary.vocab_size, self._stop_ids)
        if matcher.error:
            raise InvalidRequest(f"grammar: not a {kind}: {matcher.error}")
        return matcher


def _forbid(row: NDArray[np.float32], bits: NDArray[np.uint32]) -> None:
    allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(row)]
    np.copyto(row, np.float32(-np.inf), where=allowed == 0)


def _error(matcher: llguidance.LLMatcher) -> str:
    """What is wrong with a matcher, in llguidance's words; empty: nothing."""
    return _first_line(matcher.get_error()) if matcher.is_error() else ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "it can't be read")
