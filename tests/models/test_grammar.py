"""Grammars on a byte vocabulary: masks by position, nothing remembered of what was only drafted."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from draftd.ipc.errors import InvalidRequest
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.grammar import Grammars, Kind, Matcher
from draftd.models.hf_tokenizer import HfTokenizer
from tests.tiny import IM_END, write_tiny
from tests.tiny_gguf import write_gguf

VOCAB = 272


@pytest.fixture(scope="module", params=["transformers", "gguf"])
def grammars(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Grammars:
    root = tmp_path_factory.mktemp("grammar")
    write_tiny(root / "model")
    if request.param == "transformers":
        tokenizer: HfTokenizer | GGUFTokenizer = HfTokenizer.load(root / "model")
    else:
        tokenizer = GGUFTokenizer(write_gguf(root / "model", root / "model.gguf"))
    return Grammars(tokenizer, VOCAB)


def allowed(grammars: Grammars, kind: Kind, source: str, text: str, drafted: str = "") -> set[str]:
    matcher = grammars.matcher(kind, source)
    matcher.accept(list(text.encode()))
    row = np.zeros(VOCAB, np.float32)
    matcher.mask(row, list(drafted.encode()))
    before = np.zeros(VOCAB, np.float32)
    matcher.mask(before)
    again = grammars.matcher(kind, source)
    again.accept(list(text.encode()))
    fresh = np.zeros(VOCAB, np.float32)
    again.mask(fresh)
    assert (before == fresh).all(), "a drafted token left a trace"
    return {chr(token) if token < 256 else f"<{token}>" for token in np.flatnonzero(row == 0)}


def test_a_regular_expression_position_by_position(grammars: Grammars) -> None:
    pattern = "[ab]+=[0-9]{2}"
    assert allowed(grammars, "regex", pattern, "") == {"a", "b"}
    assert allowed(grammars, "regex", pattern, "a") == {"a", "b", "="}
    assert allowed(grammars, "regex", pattern, "a", "b=") == set("0123456789")
    assert f"<{IM_END}>" in allowed(grammars, "regex", pattern, "a", "=12")


def test_a_grammar_that_takes_no_token_back(grammars: Grammars) -> None:
    """llguidance refuses to where a rule counts tokens, and its matcher is of no use afterwards."""
    source = 'start: body "."\nbody[max_tokens=3]: /[a-z]*/'
    assert allowed(grammars, "lark", source, "a", "b") >= {"c", "."}
    assert "." in allowed(grammars, "lark", source, "", "abc")


def test_the_end_of_a_grammar(grammars: Grammars) -> None:
    matcher = grammars.matcher("regex", "ab")
    matcher.accept([97])
    assert not matcher.ended
    matcher.accept([98])
    assert matcher.ended


def test_how_far_a_draft_fits(grammars: Grammars) -> None:
    matcher = grammars.matcher("regex", "a*b")
    assert matcher.fitting(list(b"aab")) == 3
    assert matcher.fitting(list(b"aaxb")) == 2
    assert matcher.fitting([]) == 0


def test_a_draft_fits_up_to_the_grammars_end(grammars: Grammars) -> None:
    assert grammars.matcher("regex", "ab").fitting([*b"ab", IM_END]) == 2
    assert grammars.matcher("regex", "a+").fitting([*b"aa", IM_END, *b"a"]) == 3


def test_what_nothing_can_follow(grammars: Grammars) -> None:
    matcher = grammars.matcher("regex", "ab|c+")
    assert [matcher.ends(list(text)) for text in (b"a", b"ab", b"c", b"x")] == [False, True, False, True]
    assert matcher.ends([*b"c", IM_END])
    assert matcher.fitting(list(b"ab")) == 2, "it stands where it stood"


class Letters:
    """As much of a tokenizer as a grammar reads: bytes, and ends."""

    size = 256

    def __init__(self, *stop_ids: int) -> None:
        self.stop_ids = frozenset(stop_ids)

    def bytes_of(self, token: int) -> bytes:
        return bytes([token])

    def plain(self, text: str) -> list[int]:
        return [*text.encode()]


def test_an_end_that_the_model_lacks_is_none_and_without_any_there_is_no_grammar() -> None:
    letters: Any = Letters(0, VOCAB)  # a tokenizer may have more tokens than the model
    matcher = Grammars(letters, 256).matcher("regex", "a")
    matcher.accept([97])
    assert matcher.ended
    for none in (Letters(), Letters(VOCAB)):
        given: Any = none
        with pytest.raises(InvalidRequest, match="no token that ends an answer"):
            Grammars(given, 256)


class Lexed:
    """Stands in for llguidance's matcher: copies share a lexer, which token 9 spoils for all of them."""

    computed: ClassVar[list[list[int]]] = []  # behind which tokens a mask was

    def __init__(self, lexer: list[str] | None = None, held: Sequence[int] = ()) -> None:
        self.lexer = [] if lexer is None else lexer  # its error, if it has one
        self.held = list(held)

    def deep_copy(self) -> Lexed:
        return Lexed(self.lexer, self.held)

    def try_consume_tokens(self, tokens: list[int]) -> int:
        if 9 in tokens:
            self.lexer.append("too many states")
        if self.lexer:
            return 0
        self.held += tokens
        return len(tokens)

    def is_error(self) -> bool:
        return bool(self.lexer)

    def is_stopped(self) -> bool:
        return self.is_error()

    def get_error(self) -> str:
        return "".join(self.lexer)

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        self.computed.append(list(self.held))
        ctypes.memset(address, 0xFF, size)


def test_what_a_draft_spoils_does_no_harm_to_the_answer() -> None:
    begin: Any = Lexed
    matcher = Matcher(begin, 32, [0])
    matcher.accept([1, 2])
    row = np.zeros(32, np.float32)
    assert matcher.ends([9])
    matcher.accept([3])
    with pytest.raises(InvalidRequest, match=r"can't go on behind 4 tokens \(too many states\)"):
        matcher.mask(row, [9])
    matcher.mask(row)
    matcher.mask(row, [4])
    assert (row == 0).all()
    assert not matcher.error
    assert not matcher.ended
    stands: Any = matcher._matcher
    assert stands.held == [1, 2, 3]


def test_an_accepted_token_that_llguidance_gives_up_at_is_not_passed_over() -> None:
    """A mask may admit what then fails: a grammar's row of items is counted where a token is taken."""
    begin: Any = Lexed
    matcher = Matcher(begin, 32, [0])
    matcher.accept([1])
    matcher.accept([9])
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"can't go on behind 2 tokens \(too many states\)"):
            matcher.mask(np.zeros(32, np.float32))
    assert not matcher.ended


def test_a_mask_that_the_draft_had_is_not_computed_again_for_its_check() -> None:
    begin: Any = Lexed
    matcher, row = Matcher(begin, 32, [0]), np.zeros(32, np.float32)
    Lexed.computed.clear()
    for drafted in ([], [1], [1, 2], [], [1], [1, 2], [1, 2, 3]):  # the draft's, then the check's
        matcher.mask(row, drafted)
    assert Lexed.computed == [[], [1], [1, 2], [1, 2, 3]]
    matcher.accept([1])
    matcher.mask(row)
    matcher.mask(row, [1])
    assert Lexed.computed[4:] == [[1], [1, 1]], "behind accepted tokens all is new"


@pytest.mark.parametrize(
    ("kind", "source", "first"),
    [
        ("json_schema", json.dumps({"type": "boolean"}), {"t", "f"}),
        ("lark", 'start: "yes" | "no"', {"y", "n"}),
        ("gbnf", 'root ::= "yes" | "no"', {"y", "n"}),
    ],
)
def test_other_kinds(grammars: Grammars, kind: Kind, source: str, first: set[str]) -> None:
    assert allowed(grammars, kind, source, "") >= first
    assert not allowed(grammars, kind, source, "") & {"z", "q"}


def test_a_schema_that_json_can_not_say(grammars: Grammars) -> None:
    with pytest.raises(InvalidRequest, match=r"grammar: not a json_schema: ."):
        grammars.matcher("json_schema", {"const": b"bytes"})


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "(["),
        ("json_schema", "{"),
        ("json_schema", '{"type": "colour"}'),
        ("lark", "start: nothing"),
        ("gbnf", "::="),
    ],
)
def test_a_wrong_grammar_is_a_sentence(grammars: Grammars, kind: Kind, source: str) -> None:
    with pytest.raises(InvalidRequest, match=f"grammar: not a {kind}: ."):
        grammars.matcher(kind, source)
