"""Whether a request may come in, and if not, when to try again."""

from __future__ import annotations

import time
from collections import deque

from draftd.daemon.settings import Settings
from draftd.ipc.errors import InvalidRequest, ModelNotFound, Overloaded
from draftd.ipc.messages import Generate, Prefill

RECENT = 32  # ends of requests that the rate is measured from
UNKNOWN = 1.0  # seconds to wait where nothing has been measured
LONGEST = 60.0  # seconds: a hint beyond it says nothing


class Admission:
    """A bounded queue, and the pace at which its places become free."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=RECENT)  # monotonic seconds
        self._refused = 0  # since the last end

    def admit(self, message: Generate | Prefill, settings: Settings, open_requests: int) -> None:
        """ModelNotFound or Overloaded if this daemon can't take the request."""
        check_pair(message.model, settings)
        if isinstance(message, Generate):
            check_beams(message.beams, settings.slots)
        if open_requests >= settings.slots + settings.queue:
            self._refused += 1
            wait = self.retry_after(time.monotonic())
            raise Overloaded(
                f"{open_requests} requests are running or waiting: try again in {wait:.1f} s", wait
            )

    def ended(self, now: float) -> None:
        """A request ended: its place is free."""
        self._ends.append(now)
        self._refused = 0

    def retry_after(self, now: float) -> float:
        """Seconds until a place is likely to be free for whoever was refused last.

        The k-th refused since a place became free is told k intervals, so that not all come back at once.
        """
        if len(self._ends) < 2:
            return UNKNOWN
        # The time since the last end counts: a daemon that has come to a halt has no pace.
        interval = max((self._ends[-1] - self._ends[0]) / (len(self._ends) - 1), now - self._ends[-1])
        return round(min(LONGEST, max(0.1, interval * self._refused)), 1)


def check_pair(name: str | None, settings: Settings) -> None:
    """ModelNotFound unless it is the pair that this daemon serves."""
    if name not in (None, settings.pair):
        raise ModelNotFound(f"this daemon serves {settings.pair}, not {name}")


def check_beams(beams: int, slots: int) -> None:
    """InvalidRequest for a search that all the slots together can't hold."""
    if beams > slots:
        raise InvalidRequest(
            f"beams={beams} needs as many slots, this daemon has {slots}: ask for "
            f"{slots} at most, or serve with --slots {beams}"
        )
