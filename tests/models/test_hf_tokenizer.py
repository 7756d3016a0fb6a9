"""The transformers tokenizer: templates, ends, and streams that join to what decoding at once gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from draftd.ipc.errors import CorruptModel, InvalidRequest, ModelNotFound
from draftd.models.hf_tokenizer import HfTokenizer
from tests.tiny import END_OF_TEXT, IM_END, IM_START, write_tiny, write_tokenizer

SAMPLE = ["héllo wörld, the quick brown fox ☃☃ 👩‍👩‍👧 日本語 日本 🙂🙂 naïve café"] * 3


def byte_level(path: Path) -> None:
    """A byte-level BPE whose merges cut through characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator(SAMPLE, trainer)
    save(tokenizer, path)


def byte_fallback(path: Path) -> None:
    """A vocabulary as SentencePiece makes them: words, and bytes for what has no word."""
    words = ["<s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *"abcdeé日", "▁the", "the", "\ufffd"]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>"])
    save(tokenizer, path)


def save(tokenizer: Tokenizer, path: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)  # type: ignore[no-untyped-call]


KINDS: dict[str, Callable[[Path], object]] = {
    "bytes": write_tokenizer,
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param](path)
    return HfTokenizer.load(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> HfTokenizer:
    return HfTokenizer.load(write_tiny(tmp_path_factory.mktemp("tiny")))


def streamed(tokenizer: HfTokenizer, tokens: Sequence[int], behind: Sequence[int] = ()) -> str:
    stream = tokenizer.stream(behind)
    return "".join([stream.push(token) for token in tokens] + [stream.flush()])


@given(text=st.text())
@example(text="👩‍👩‍👧 \ufffd\ufffd é")
@example(text="a bed, decade  é a")
def test_a_streamed_text_is_the_text_decoded_at_once(tokenizer: HfTokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert streamed(tokenizer, tokens) == tokenizer.decode(tokens)
    if "<" not in text:  # else it may spell a special token
        assert streamed(tokenizer, tokens) == text


@given(data=st.data())
def test_any_tokens_stream_to_what_they_decode_to(tokenizer: HfTokenizer, data: st.DataObject) -> None:
    """Invalid UTF-8, special tokens and ids beyond the vocabulary among them."""
    tokens = data.draw(st.lists(st.integers(0, tokenizer.size + 3)))
    assert streamed(tokenizer, tokens) == tokenizer.decode(tokens)


@given(prompt=st.text(), answer=st.text())
@example(prompt="a bed", answer="decade \ufffd\ufffd é")
def test_behind_a_prompt_an_answer_is_what_it_adds_to_the_text(
    tokenizer: HfTokenizer, prompt: str, answer: str
) -> None:
    before, tokens = tokenizer.encode(prompt + "a"), tokenizer.encode(answer)
    known = tokenizer.decode(before)
    assert known + streamed(tokenizer, tokens, before) == tokenizer.decode([*before, *tokens])


def test_an_answers_first_space_is_part_of_it(tmp_path: Path) -> None:
    """As llama.cpp gives it."""
    byte_fallback(tmp_path)
    tokenizer = HfTokenizer.load(tmp_path)
    ids = {tokenizer.piece(token): token for token in range(tokenizer.size)}
    the, euro = ids["▁the"], [byte + 1 for byte in "€".encode()]  # after <s>, the bytes
    bed = tokenizer.encode("a bed")
    for prompt in (bed, [*bed, 0], [*bed, ids["▁"]], [*bed, *euro[:2]]):
        assert streamed(tokenizer, [the, ids["a"], the], prompt) == " thea the"
        assert streamed(tokenizer, [*euro, the], prompt) == "€ the"
    assert streamed(tokenizer, [the], [0]) == "the", "nothing stands before it"


def test_a_run_of_bytes_is_not_ended_by_a_special_token(tmp_path: Path) -> None:
    byte_fallback(tmp_path)
    tokenizer = HfTokenizer.load(tmp_path)
    euro = [byte + 1 for byte in "€".encode()]  # after <s>, the bytes
    assert streamed(tokenizer, [euro[0], euro[1], 0, euro[2]]) == "€"


@given(text=st.text(min_size=1))
def test_a_character_is_whole_and_comes_with_its_last_token(tiny: HfTokenizer, text: str) -> None:
    stream = tiny.stream()
    for character in text.replace("\ufffd", ""):
        parts = [stream.push(token) for token in tiny.encode(character)]
        assert parts == [""] * (len(parts) - 1) + [character]
    assert stream.flush() == ""


def test_incomplete_bytes_wait_and_end_as_replacements(tiny: HfTokenizer) -> None:
    stream = tiny.stream()
    smile = "🙂".encode()
    assert [stream.push(byte) for byte in smile[:3]] == ["", "", ""]
    assert stream.push(ord("a")) == "\ufffda"
    assert [stream.push(byte) for byte in (0xE2, 0xE2, 0xFF)] == ["", "\ufffd", "\ufffd"]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_and_unknown_tokens_add_no_text(tiny: HfTokenizer) -> None:
    stream = tiny.stream()
    tokens = (ord("a"), IM_START, 270, 10_000, ord("b"))
    assert [stream.push(token) for token in tokens] == ["a", "", "", "", "b"]


def test_a_chat_goes_through_the_template_and_ends_where_the_answer_begins(tiny: HfTokenizer) -> None:
    tokens = tiny.chat([{"role": "user", "content": "Hi é"}])
    text = [*b"user\nHi ", 0xC3, 0xA9]
    assert tokens == [IM_START, *text, IM_END, 10, IM_START, *b"assistant\n"]


def test_pieces_sizes_and_ends(tiny: HfTokenizer) -> None:
    assert tiny.size == 259
    assert [tiny.piece(token) for token in (97, 32, IM_END, 259)] == ["a", "Ġ", "<|im_end|>", ""]
    assert tiny.stop_ids == {END_OF_TEXT, IM_END}


def test_ends_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert HfTokenizer.load(tmp_path).stop_ids == {END_OF_TEXT, IM_END}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 9}}))
    assert HfTokenizer.load(tmp_path).stop_ids == {7, 8, 9, END_OF_TEXT, IM_END}


def test_no_template_is_said(tmp_path: Path) -> None:
    byte_level(tmp_path)
    with pytest.raises(InvalidRequest, match="no chat template"):
        HfTokenizer.load(tmp_path).chat([{"role": "user", "content": "Hi"}])


def test_what_a_template_refuses_is_said(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system messages here') }}")
    with pytest.raises(InvalidRequest, match="no system messages here"):
        HfTokenizer.load(tmp_path).chat([{"role": "system", "content": "Hi"}])


def test_absent_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="holds no tokenizer"):
        HfTokenizer.load(tmp_path)
    write_tokenizer(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(CorruptModel, match="can't be read"):
        HfTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(whole)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2')  # transformers goes on without it
    with pytest.raises(CorruptModel, match=r"generation_config\.json can't be read: .*; fetch it again"):
        HfTokenizer.load(tmp_path)


def test_the_bytes_of_tokens_join_to_the_text(tokenizer: HfTokenizer) -> None:
    text = "abc \N{SNOWMAN} the \N{SLIGHTLY SMILING FACE}"
    joined = b"".join(tokenizer.bytes_of(token) for token in tokenizer.encode(text))
    assert joined.decode().strip() == text
    assert all(tokenizer.bytes_of(token) == b"" for token in tokenizer.stop_ids)
    assert tokenizer.bytes_of(tokenizer.size) == b""
