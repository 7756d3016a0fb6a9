"""A simulated daemon: texts of known acceptance, passes of known cost, all fixed policies to compare with.

Times are scored without noise; only what the controller is told of them is noisy, so a difference of scores
is one of decisions. `python -m tests.daemon.simulator` prints the table of all regimes.
"""

from __future__ import annotations

from tests.daemon.simulator.fixed import best_fixed, plain, policies
from tests.daemon.simulator.machines import MACHINES, Machine
from tests.daemon.simulator.running import Weather, run, run_one
from tests.daemon.simulator.text import Text, texts

__all__ = [
    "MACHINES",
    "Machine",
    "Text",
    "Weather",
    "best_fixed",
    "plain",
    "policies",
    "run",
    "run_one",
    "texts",
]
