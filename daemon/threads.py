"""How many threads to compute with: fewer while other programs use the cores.

Both thread pools, torch's and llama.cpp's, spin where their threads meet. One thread that has to wait for
another program's time slice then holds up all of them, hundreds of times a pass: docs/architecture.md has
the measurement. Pure: loads and times come in as arguments.
"""

from __future__ import annotations

SLACK = 0.3  # of a core that others may use before a thread makes room
CALM = 3.0  # seconds of less load before a thread comes back


class Threads:
    """The count that suits the load, among `cores` of which draftd may use `most`."""

    def __init__(self, cores: int, most: int) -> None:
        self.cores = cores
        self.most = most
        self.count = most
        self._calm_since: float | None = None

    def wake(self, others: int) -> None:
        """Work begins after a pause, and so many threads of other programs compute at this moment.

        One moment is too little to take a thread away by, and enough to give one back.
        """
        self.count = max(self.count, self._fitting(others))
        self._calm_since = None

    def step(self, others: float, now: float) -> int:
        """Take what other programs use, in cores, at `now` (seconds): down at once, up after a while."""
        fitting = self._fitting(others)
        if fitting <= self.count:
            self.count, self._calm_since = fitting, None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM:
            self.count, self._calm_since = fitting, None
        return self.count

    def _fitting(self, others: float) -> int:
        return max(1, min(self.most, int(self.cores - others + SLACK)))
