"""A real tiny pair, loaded."""

from __future__ import annotations

from typing import Any

import pytest

from draftd.daemon import loader
from draftd.daemon.settings import Settings
from draftd.ipc.errors import InvalidRequest
from draftd.models.catalog import Pair
from draftd.models.gguf_tokenizer import GGUFTokenizer


def load(settings: Settings) -> None:
    loaded = loader.load(settings.model_copy(update={"speculate": False}), lambda fraction, stage: None)
    loaded.target.close()


def test_what_a_chat_needs_is_there_once_the_pair_is(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = []
    render = GGUFTokenizer.render

    def seen(self: GGUFTokenizer, messages: Any) -> str:
        rendered.append(render(self, messages))
        return rendered[-1]

    monkeypatch.setattr(GGUFTokenizer, "render", seen)
    load(tiny[1])
    assert len(rendered) == 1
    assert "?" in rendered[0]


def test_a_model_without_a_chat_template_loads(
    tiny: tuple[Pair, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any) -> str:
        raise InvalidRequest("the model has no chat template")

    monkeypatch.setattr(GGUFTokenizer, "render", refused)
    load(tiny[1])
