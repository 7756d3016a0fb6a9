from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from transformers import AutoTokenizer

from draftd.daemon.settings import load
from draftd.ipc.errors import CorruptModel, InvalidRequest, ModelNotFound
from draftd.models.catalog import load_catalog
from draftd.models.convert import ensure_transformers
from draftd.models.fetch import cached_path
from draftd.models.gguf_tokenizer import GGUFTokenizer
from tests.tiny import END_OF_TEXT, IM_END, write_tiny
from tests.tiny_gguf import write_gguf

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces\n\n\ttab\r\n",
    "naïve café, 東京, Ελλάδα, 🦙👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # 1234567890",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a<|endoftext|>b",
    "it's I'll don't WE'VE",
    "</s> and <s>",
]
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief. é🦙"}, {"role": "user", "content": " Hi \n"}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "<|im_end|> & <b>"},
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_gguf(write_tiny(folder / "model"), folder / "model.gguf")
    return folder


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.smollm2)])
def both(folder: Path, request: pytest.FixtureRequest) -> tuple[GGUFTokenizer, Any]:
    """Ours over the GGUF, and transformers' of the same model."""
    if request.param == "tiny":
        return GGUFTokenizer(folder / "model.gguf"), AutoTokenizer.from_pretrained(folder / "model")
    settings = load()
    model = load_catalog().pair("smollm2").target
    request.getfixturevalue("smollm2")
    path = cached_path(model, settings.cache_dir)
    converted = ensure_transformers(path, settings.cache_dir)
    return GGUFTokenizer(path), AutoTokenizer.from_pretrained(converted)


def read(tokenizer: GGUFTokenizer, tokens: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join([stream.push(token) for token in tokens]) + stream.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(both: tuple[GGUFTokenizer, Any], text: str) -> None:
    ours, theirs = both
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("messages", CHATS)
def test_chats_equal_those_of_transformers(
    both: tuple[GGUFTokenizer, Any], messages: list[dict[str, str]]
) -> None:
    ours, theirs = both
    wanted = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.chat(messages) == wanted


@pytest.mark.parametrize("text", TEXTS)
def test_texts_equal_those_of_transformers(both: tuple[GGUFTokenizer, Any], text: str) -> None:
    ours, theirs = both
    tokens = theirs.encode(text)
    assert read(ours, tokens) == theirs.decode(tokens, skip_special_tokens=True)


def test_pieces_equal_those_of_transformers(both: tuple[GGUFTokenizer, Any]) -> None:
    ours, theirs = both
    named = min(ours.size, len(theirs))
    assert [ours.piece(token) for token in range(named)] == theirs.convert_ids_to_tokens(list(range(named)))


def test_size_and_stops(folder: Path) -> None:
    tokenizer = GGUFTokenizer(folder / "model.gguf")
    assert tokenizer.size == 259  # the rest of the 272 is padding
    assert tokenizer.stop_ids == {END_OF_TEXT, IM_END}
    tokenizer.close()
    tokenizer.close()


def test_a_vocabulary_goes_with_its_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    monkeypatch.setattr(llama_cpp, "llama_model_free", freed.append)
    tokenizer = GGUFTokenizer(folder / "model.gguf")
    stream = tokenizer.stream()
    del tokenizer
    assert (stream.push(ord("a")), freed) == ("a", []), "who reads it keeps it"
    del stream
    assert len(freed) == 1


def test_a_stream_never_splits_a_character(folder: Path) -> None:
    tokenizer = GGUFTokenizer(folder / "model.gguf")
    stream = tokenizer.stream()
    llama = "🦙".encode()  # a token a byte
    assert [stream.push(token) for token in [65, *llama, IM_END, *llama[:2]]] == [
        *["A", "", "", "", "🦙"],
        *["", "", ""],
    ]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_invalid_bytes_in_the_middle(folder: Path) -> None:
    tokenizer = GGUFTokenizer(folder / "model.gguf")
    assert read(tokenizer, [65, 0xF0, 66]) == "A\N{REPLACEMENT CHARACTER}B"


def test_ordinary_entries_that_look_like_control_tokens(folder: Path, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "model")
    settings = json.loads((path / "tokenizer.json").read_text())
    settings["model"]["vocab"]["</s>"] = 259
    (path / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = GGUFTokenizer(write_gguf(path, tmp_path / "model.gguf"))
    assert tokenizer.stop_ids == {END_OF_TEXT, IM_END}
    assert tokenizer.encode("<s>x</s><|im_end|>") == [*b"<s>x</s>", IM_END]
    assert read(tokenizer, [259]) == "</s>"


def with_template(folder: Path, tmp_path: Path, template: str) -> GGUFTokenizer:
    path = write_tiny(tmp_path / "model")
    (path / "chat_template.jinja").write_text(template)
    return GGUFTokenizer(write_gguf(path, tmp_path / "model.gguf"))


def test_a_template_that_refuses(folder: Path, tmp_path: Path) -> None:
    tokenizer = with_template(folder, tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="refused the messages: roles must alternate"):
        tokenizer.chat(CHATS[0])


def test_a_template_cannot_reach_outside(folder: Path, tmp_path: Path) -> None:
    tokenizer = with_template(folder, tmp_path, "{{ messages.__class__.__mro__ }}")
    with pytest.raises(InvalidRequest, match="unsafe"):
        tokenizer.chat(CHATS[0])


def test_no_template(folder: Path, tmp_path: Path) -> None:
    tokenizer = with_template(folder, tmp_path, "")
    with pytest.raises(InvalidRequest, match="no chat template: give `prompt`"):
        tokenizer.chat(CHATS[0])


def test_files_that_are_not_there_or_not_right(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no model file .*gone\.gguf"):
        GGUFTokenizer(tmp_path / "gone.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    with pytest.raises(CorruptModel, match=r"bad\.gguf is damaged"):
        GGUFTokenizer(tmp_path / "bad.gguf")
