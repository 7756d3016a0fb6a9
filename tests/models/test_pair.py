from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from draftd.models.base import TextStream
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.pair import check_pair
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf


@dataclass
class Words:
    """A tokenizer of which only the vocabulary counts."""

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
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def chat(self, messages: object) -> list[int]:
        raise NotImplementedError

    def stream(self) -> TextStream:
        raise NotImplementedError

    def grammar_vocabulary(self, vocab: int) -> object:
        raise NotImplementedError


WORDS = ["<end>", "a", "b", "c", "d"]


def test_the_same_vocabulary() -> None:
    report = check_pair(Words(WORDS), Words(WORDS), 5, 5)
    assert (report.ok, report.shared, report.sentence, report.notes) == (True, 5, "", ())


def test_paddings_may_differ() -> None:
    report = check_pair(Words(WORDS), Words(WORDS), 8, 16)
    assert (report.ok, report.shared) == (True, 5)
    assert report.notes == ("the draft's rows are 8 wide, the target's 16",)


def test_the_first_difference_is_named() -> None:
    report = check_pair(Words(["<end>", "a", "x", "y", "d"]), Words(WORDS), 5, 5)
    assert (report.ok, report.shared) == (False, 0)
    assert report.sentence.startswith(
        "token id 2 is 'x' in the draft, 'b' in the target (3 of 5 ids agree): "
    )


def test_only_one_names_some_tokens() -> None:
    report = check_pair(Words(WORDS[:4]), Words(WORDS), 8, 8)
    assert (report.ok, report.shared) == (True, 4)
    assert report.notes == ("the draft names 4 tokens, the target 5",)


def test_rows_narrower_than_the_tokenizer() -> None:
    assert check_pair(Words(WORDS), Words(WORDS), 3, 5).shared == 3


def test_a_stop_token_that_the_draft_does_not_have() -> None:
    report = check_pair(Words(WORDS[:4]), Words(WORDS, frozenset({4})), 5, 5)
    assert not report.ok
    assert report.sentence.startswith("the target stops at token id 4 ('d'), which the draft does not have")


def test_other_stops_do_no_harm() -> None:
    report = check_pair(Words(WORDS, frozenset({0, 3})), Words(WORDS), 5, 5)
    assert report.ok
    assert report.notes == ("the draft stops at [0, 3], the target at [0]",)


def test_a_vocabulary_of_152_thousand_takes_well_under_a_second() -> None:
    many = [f"piece{index}" for index in range(152_064)]
    begin = time.perf_counter()
    assert check_pair(Words(many), Words(list(many)), 152_064, 152_064).ok
    assert time.perf_counter() - begin < 2  # some 0.03 seconds; the bound is for a busy machine


def test_real_files(tmp_path: Path) -> None:
    tokenizer = GGUFTokenizer(write_gguf(write_tiny(tmp_path / "model"), tmp_path / "model.gguf"))
    assert check_pair(tokenizer, tokenizer, 272, 272).shared == 259
