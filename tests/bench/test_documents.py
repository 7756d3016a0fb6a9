from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest


def test_a_document_tells_its_command_with_the_settings_it_needs(
    program: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DTYPE": "float32", "CACHE_DIR": "/home/ada/cache", "API_KEY": "secret"}.items():
        monkeypatch.setenv(f"DRAFTD_{name}", value)
    monkeypatch.setattr(sys, "argv", ["bench/it.py", "--pair", "two words"])
    document = program("documents").begin("it", pair="tiny")
    assert document["command"].endswith("DRAFTD_DTYPE=float32 python bench/it.py --pair 'two words'")
    assert "ada" not in document["command"]
    assert "secret" not in document["command"]
    assert document["pair"] == "tiny"
