"""The programs of bench/, as modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A program by its name, found as Python finds what lies beside a script."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module
