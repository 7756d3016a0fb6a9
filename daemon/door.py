"""The way in stays open: a socket file that was removed is made again."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable

from draftd.ipc.endpoint import Hold
from draftd.ipc.errors import InvalidEndpoint

log = logging.getLogger("draftd.front")

LOOK_SECONDS = 5.0  # between two looks at the socket file
WARN_SECONDS = 60.0  # between two lines about the same trouble
MOST = 2**20  # descriptors; containers may have 2**30, of which the gate's look would have a table made, 8 GB


class Door:
    """Looks after one endpoint; `bind` binds it, again where that is needed."""

    def __init__(self, hold: Hold | None, bind: Callable[[], None]) -> None:
        """Bind for the first time; `hold`: the claim on the socket file, None for TCP."""
        self.hold = hold
        self.bind = bind
        self._look_at = 0.0  # monotonic seconds
        self._warned_at = float("-inf")
        bind()
        if hold is not None:
            hold.bound()

    def tick(self, now: float) -> float | None:
        """See to the socket file now and then; EndpointInUse if another daemon has taken its place."""
        if self.hold is None:
            return None
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            if not self.hold.is_whole():
                self._open_again(self.hold, now)
        return self._look_at

    def _open_again(self, hold: Hold, now: float) -> None:
        try:
            hold.renew()
            self.bind()  # beside the old one: unbinding that would cut off who came in through it
            hold.bound()
        except (InvalidEndpoint, OSError) as error:
            if now - self._warned_at > WARN_SECONDS:
                self._warned_at = now
                log.error("the socket %s was removed and can't be made again: %s", hold.path, error)
            return
        log.warning("the socket %s was removed: made and bound again", hold.path)


def all_descriptors() -> None:
    """Take as many descriptors as the system lets this process have, up to MOST."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MOST), most))
