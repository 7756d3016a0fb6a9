"""A fault of draftd's own, in the engine, ends the request it met; the others don't hear of it.

Whose it is must be plain: a round that carried several requests, or a second fault without a round in between
that went well (a GPU that answers nothing but errors), ends the engine, and the front resumes them all. Want
of memory is nobody's: it ends the engine too, since only that gives back what it holds.
"""

from __future__ import annotations

from draftd.daemon import logs
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request
from draftd.ipc.errors import DraftdError

# How libraries word it in errors of no type of their own: torch on a CPU, CUDA (pinned memory, too), cuBLAS.
WANT = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class Faults:
    """What to do about an exception that nobody expected."""

    def __init__(self) -> None:
        self._last_round_failed = False

    def went_well(self) -> None:
        """A round ended as it should."""
        self._last_round_failed = False

    def blame(self, engine: Engine, error: Exception) -> Request | None:
        """The request at which a round failed; None if that can't be told, and the engine must end."""
        again, self._last_round_failed = self._last_round_failed, True
        # Whom the round was for, not who runs: some may have ended in it, and nobody has heard of that.
        met = {request.key: request for request in engine.scheduler.at_work}
        if again or len(met) != 1 or out_of_memory(error):
            return None
        return next(iter(met.values()))


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, the machine's or a GPU's; torch has a type of its own, or only words."""
    if isinstance(error, MemoryError):
        return True
    # by name, since torch is not imported where llama.cpp is the target
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WANT)


def ours(error: Exception) -> DraftdError:
    """What an app hears of a fault at its message, and the log of it; want of memory is raised again."""
    if out_of_memory(error):
        raise error
    return logs.told(error)
