from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from draftd.ipc.errors import IncompatiblePair
from draftd.models.base import TextStream
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.pair import PairReport, check_pair
from tests.tiny import retokenize, write_tiny
from tests.tiny_gguf import write_gguf

SAMPLE = "a bad cab"


@dataclass
class Words:
    """A tokenizer of words without spaces; control tokens are in angle brackets."""

    pieces: list[str]
    stop_ids: frozenset[int] = frozenset({0})

    @property
    def size(self) -> int:
        return len(self.pieces)

    @size.setter
    def size(self, _: int) -> None: ...

    def piece(self, token: int) -> str:
        return self.pieces[token]

    def bytes_of(self, token: int) -> bytes:
        return b"" if self.pieces[token].startswith("<") else self.pieces[token].encode()

    def plain(self, text: str) -> list[int]:
        tokens = []
        while text:
            fitting = [piece for piece in self.pieces if text.startswith(piece)]
            if not fitting:
                text = text[1:]
                continue
            piece = max(fitting, key=len)
            tokens.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return tokens

    def encode(self, text: str) -> list[int]:
        return self.plain(text)

    def chat(self, messages: object, tools: object = ()) -> list[int]:
        raise NotImplementedError

    def stream(self, behind: object = ()) -> TextStream:
        raise NotImplementedError

    def render(self, messages: object, tools: object = (), *, answer: bool = True) -> str:
        raise NotImplementedError


def check(draft: Words, target: Words, draft_vocab: int, target_vocab: int) -> PairReport:
    return check_pair(draft, target, draft_vocab, target_vocab, SAMPLE)


WORDS = ["<end>", "a", "b", "c", "d", " "]


def test_the_same_vocabulary() -> None:
    report = check(Words(WORDS), Words(WORDS), 6, 6)
    assert report == PairReport("ids", 6, "the same tokenizer")


def test_paddings_may_differ() -> None:
    report = check(Words(WORDS), Words(WORDS), 8, 16)
    assert (report.by, report.shared) == ("ids", 6)
    assert report.notes == ("the draft's rows are 8 wide, the target's 16",)


def test_only_one_names_some_tokens() -> None:
    report = check(Words(WORDS[:4]), Words(WORDS), 8, 8)
    assert (report.by, report.shared) == ("ids", 4)
    assert report.notes == ("the draft names 4 tokens, the target 6",)


def test_rows_narrower_than_the_tokenizer() -> None:
    assert check(Words(WORDS), Words(WORDS), 3, 6).shared == 3


def test_other_stops_do_no_harm() -> None:
    report = check(Words(WORDS, frozenset({0, 3})), Words(WORDS), 6, 6)
    assert report.by == "ids"
    assert report.notes == ("the draft stops at [0, 3], the target at [0]",)


def test_other_ids_of_the_same_tokens_are_shared() -> None:
    report = check(Words(["a", "b", "<end>", "d", "c", " "]), Words(WORDS), 6, 6)
    assert (report.by, report.shared) == ("tokens", 0)
    assert report.sentence == (
        "different tokenizers: drafting by shared tokens (100 % of a sample text's tokens are shared)"
    )
    assert report.translation is not None
    assert [report.translation.draft_id(token) for token in range(6)] == [2, 0, 1, 4, 3, 5]


def test_too_few_shared_tokens_are_drafted_by_text() -> None:
    report = check(Words(WORDS), Words([*WORDS, "bad", "cab"]), 6, 8)
    assert report.by == "ids", "what only the target has does no harm"
    report = check(Words(["<end>", "c", "b", "a", "d", " "]), Words([*WORDS, "bad", "cab"]), 6, 8)
    assert report.by == "text"
    assert report.sentence == (
        "different tokenizers: drafting by text (60 % of a sample text's tokens are shared)"
    )


def test_ids_beyond_the_rows_are_not_shared() -> None:
    report = check(Words(["a", "b", "<end>", "d", "c", " "]), Words(WORDS), 5, 6)
    assert report.translation is not None
    assert report.translation.draft_id(5) is None


def test_a_stop_that_the_draft_lacks_makes_it_another_tokenizer() -> None:
    report = check(Words(WORDS), Words([*WORDS, "<stop>"], frozenset({6})), 6, 7)
    assert report.by == "tokens"


def test_a_draft_that_cannot_spell_is_refused() -> None:
    with pytest.raises(IncompatiblePair, match="can't spell an ordinary text"):
        check(Words(["<end>", "b", "a", "c", "d"]), Words(WORDS), 5, 6)


def test_a_vocabulary_of_152_thousand_takes_well_under_a_second() -> None:
    many = [f"piece{index}" for index in range(152_064)]
    begin = time.perf_counter()
    assert check(Words(many), Words(list(many)), 152_064, 152_064).by == "ids"
    assert time.perf_counter() - begin < 2  # some 0.03 seconds; the bound is for a busy machine


def test_real_files(tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "model")
    tokenizer = GGUFTokenizer(write_gguf(plain, tmp_path / "model.gguf"))
    assert check_pair(tokenizer, tokenizer, 272, 272, SAMPLE).shared == 259
    other = GGUFTokenizer(write_gguf(retokenize(plain, tmp_path / "other"), tmp_path / "other.gguf"))
    assert check_pair(other, tokenizer, 272, 272, SAMPLE).by == "tokens"
