"""Machines and texts by name for the tests of the controller, and one that knows what passes cost."""

from __future__ import annotations

from functools import cache

from draftd.daemon.controller import Controller
from tests.daemon.simulator import (
    Text,
    texts,
)

FLAT = "transformers, tuned draft"
STEEP = "llama.cpp, tuned draft"
STEPPED = "llama.cpp without AMX, tuned draft"
REQUESTS, SKIP = 6, 2


@cache
def answers(regime: str) -> list[Text]:
    return texts(regime, REQUESTS)


def taught(even: bool = False, padded: bool = False) -> Controller:
    """A controller that has seen passes of 1 s and half a second a row."""
    controller = Controller(("model",), even=even, padded=padded)
    for rows in (1, 2, 4, 8, 16) * 2:
        controller.took(rows, 1.0 + 0.5 * rows)
    return controller
