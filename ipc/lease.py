"""The thread that proves a client alive while its app computes or waits."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from draftd.ipc import link


class Renewal:
    """Calls a connection's method every PING_EVERY seconds, from start() to stop().

    The one thread a client adds: an app that computes between two tokens holds neither socket nor loop.
    """

    def __init__(self, renew: Callable[[], None]) -> None:
        self._renew = weakref.WeakMethod(renew)  # a connection that nobody uses ends the thread
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin with the connection's first generation: before it there is nothing to lose."""
        if self._thread is None and not self._ended.is_set():
            self._thread = threading.Thread(target=self._run, name="draftd lease", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; call it without the locks that renewing takes."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(link.PING_EVERY):
            renew = self._renew()
            if renew is None:
                return
            renew()
            del renew
