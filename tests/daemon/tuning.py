"""What the tests of a tuned draft share: a text to read, the commands, and a winner whatever is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from draftd.daemon import tune
from draftd.daemon.models_cli import models_app
from draftd.daemon.tuned import Figure
from draftd.models.catalog import Pair

TEXT = "def add(one, two):\n    return one + two\n\nThe sum of two numbers is a number.\n" * 3


def favour(monkeypatch: pytest.MonkeyPatch, types: str, source: str = "small") -> None:
    """Have one form of a model win as the draft, whatever this machine measures."""

    def choose(figures: list[Figure], shipped: int | None) -> int:
        return [(each.source, each.types) for each in figures].index((source, types))

    monkeypatch.setattr(tune, "choose", choose)


def models(*arguments: str) -> Result:
    result = CliRunner().invoke(models_app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def record_source(pair: Pair) -> Path:
    assert pair.draft is not None
    assert pair.draft.path is not None
    return pair.draft.path
