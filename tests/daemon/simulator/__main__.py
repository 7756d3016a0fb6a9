"""The table of all regimes, and what the controller's calls take."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

from draftd.daemon.control import Control
from draftd.daemon.controller import Controller
from tests.daemon.simulator.fixed import best_fixed, plain, policies
from tests.daemon.simulator.machines import MACHINES
from tests.daemon.simulator.running import Weather, run, run_one
from tests.daemon.simulator.text import ANSWER, KINDS, texts

REGIMES = (
    *KINDS,
    "code>prose",
    "unpredictable>math",
    "code|prose",
    "unpredictable|code",
    "prose|prose|unpredictable|math|edit",
)


def main() -> None:
    requests, skip = 8, 2
    among = policies()
    print(
        f"{requests} requests of {ANSWER} tokens from a cold start; all but `first`: without the first {skip}"
    )
    print(f"{'machine':34} {'regime':36} speed-up best-fixed share first  best fixed policy")
    for name, machine in MACHINES.items():
        for regime in REGIMES:
            answers = texts(regime, requests)
            best, policy = best_fixed(machine, answers, among, skip)
            spent = run(Controller(), machine, answers, Weather(Random(7)))
            alone, mine = plain(machine, 1), sum(spent[skip:])
            rest = alone * (requests - skip)
            print(
                f"{name:34} {regime:36} {rest / mine:8.2f} {rest / best:10.2f} {best / mine:5.2f}"
                f" {alone / spent[0]:5.2f}  {policy.source} {policy.length} >= {policy.floor}"
                f"{' and the next' if policy.low else ''}",
                flush=True,
            )
    print("microseconds a call:", ", ".join(f"{name} {value:.1f}" for name, value in speed().items()))


def speed() -> dict[str, float]:
    """Mean microseconds of the controller's calls over twenty requests of code."""
    spent: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **named: Any) -> Any:
            began = time.process_time()
            result = call(*args, **named)
            spent[name] += time.process_time() - began
            calls[name] += 1
            return result

        return measured

    class TimedControl(Control):
        learn = timed("learn", Control.learn)
        plan = timed("plan", Control.plan)

    controller, machine = Controller(), MACHINES["llama.cpp, tuned draft"]
    controller.took = timed("took", controller.took)  # type: ignore[method-assign]
    for text in texts("code", 20):
        control = TimedControl(controller, "auto", chosen="greedy")
        run_one(controller, control, machine.tables(), text, Weather(Random(1)))
    return {name: 1e6 * spent[name] / calls[name] for name in spent}


if __name__ == "__main__":
    main()
