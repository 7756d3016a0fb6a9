"""Between two real tokenizers: what is shared, what is spelled, and that no byte gets lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.hf_tokenizer import HfTokenizer
from draftd.models.spelling import Spelling
from draftd.models.translation import ABSENT, Translation
from tests.tiny import IM_END, IM_START, retokenize, write_tiny
from tests.tiny_gguf import write_gguf

MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("o", "o"), ("Ġ", "t"), ("l", "l"))
VOCAB = 272
TEXT = "the thin tool in the hall, the wall in it"


@dataclass(frozen=True)
class Both:
    bytes_: Spelling  # a token a byte
    merged: Spelling  # other ids, and tokens of several letters
    to_bytes: Translation  # for a target that has the merged vocabulary
    to_merged: Translation


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("two")
    plain = write_tiny(root / "plain")
    merged = Spelling(HfTokenizer.load(retokenize(plain, root / "merged", MERGES)))
    bytes_ = Spelling(GGUFTokenizer(write_gguf(plain, root / "plain.gguf")))
    return Both(
        bytes_, merged, Translation(bytes_, merged, VOCAB, VOCAB), Translation(merged, bytes_, VOCAB, VOCAB)
    )


def test_the_merges_are_there(both: Both) -> None:
    assert [both.merged.texts[token] for token in both.merged.spell(b"thin tool")] == [
        b"th", b"in", b" t", b"oo", b"l"
    ]  # fmt: skip


@given(text=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
@settings(max_examples=200)
def test_every_text_is_spelled_whole(both: Both, text: bytes) -> None:
    for spelling in (both.bytes_, both.merged):
        assert spelling.join(spelling.spell(text)) == text


def test_what_looks_like_a_control_token_is_text(both: Both) -> None:
    for spelling in (both.bytes_, both.merged):
        assert spelling.join(spelling.spell(b"a<|im_end|>b")) == b"a<|im_end|>b"


def test_a_vocabulary_that_puts_a_space_before_a_text(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, "b": 3, "\u2581a": 4, "\n": 5}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=[("\u2581", "a")], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<unk>").save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    spelling = Spelling(HfTokenizer.load(tmp_path))
    for text in (b"a", b" a", b"ab a", b"\n a", "aé b".encode(), "é".encode()[1:] + b"a"):
        assert spelling.join(spelling.spell(text)) == text
    assert spelling.spell(b"a") == [2]
    assert spelling.spell(b" a") == [4]


def test_shared_tokens_are_those_of_the_same_bytes_or_name(both: Both) -> None:
    for token in range(256):
        other = both.to_bytes.target_id(token)
        assert other is not None
        assert both.merged.texts[other] == both.bytes_.texts[token]
        assert both.to_bytes.draft_id(other) == token
    merged = {token: text for token, text in enumerate(both.merged.texts) if len(text) > 1}
    assert set(merged.values()) == {b"th", b"the", b"in", b"oo", b" t", b"ll"}
    assert all(both.to_bytes.draft_id(token) is None for token in merged)
    assert both.to_bytes.draft_id(both.merged.controls["<|im_start|>"]) == IM_START
    assert both.to_bytes.target_id(IM_END) == both.merged.controls["<|im_end|>"]
    assert both.to_bytes.share(TEXT) < 0.75
    assert both.to_merged.share(TEXT) == 1.0


def test_a_row_gets_the_ids_of_the_target(both: Both) -> None:
    row = np.arange(VOCAB, dtype=np.float32)
    translated = both.to_bytes.row(row)
    for token in range(VOCAB):
        one = both.to_bytes.draft_id(token)
        assert translated[token] == (ABSENT if one is None else row[one])


def test_sequences_are_spelled_in_the_drafts_tokens(both: Both) -> None:
    start = both.merged.controls["<|im_start|>"]
    sequence = [start, *both.merged.spell(b"the tool")]
    assert both.to_bytes.draft_ids(sequence) == [IM_START, *b"the tool"]
    assert both.to_bytes.lengths(sequence) == [1, 3, 2, 2, 1]
    letters = [IM_START, *b"the tool"]
    assert both.to_merged.draft_ids(letters) == [
        start,
        *(both.merged.spell(bytes([b]))[0] for b in b"the tool"),
    ]
    assert both.to_merged.retokenised(letters) == sequence, "by text the draft's own tokenizer has its way"


@given(text=st.text(alphabet="the inol\n", max_size=60), at=st.integers(0, 60))
@settings(max_examples=200)
def test_a_sequence_may_be_retokenised_by_parts(both: Both, text: str, at: int) -> None:
    letters = [IM_START, *text.encode()]
    before = letters[: 1 + at]
    cut = both.to_merged.cut(before)
    ids = both.to_merged.retokenised(letters)
    assert (
        both.to_merged.retokenised(before[:cut]) + both.to_merged.retokenised(letters[cut:], not cut) == ids
    )
    assert both.merged.join(ids) == text.encode()


def test_what_a_draft_begins_with_comes_first_and_once(both: Both) -> None:
    both.bytes_.leading = [IM_START]
    try:
        assert both.to_bytes.draft_ids(both.merged.spell(b"a")) == [IM_START, 97]
        start = both.merged.controls["<|im_start|>"]
        assert both.to_bytes.retokenised([start, *both.merged.spell(b"a")]) == [IM_START, 97]
    finally:
        both.bytes_.leading = []
