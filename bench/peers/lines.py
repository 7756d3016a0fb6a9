"""How a peer is driven: JSON lines over standard input and output, one answer a request.

Every peer runs in a process of its own, with the Python that has its library: this file uses nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]  # text (a templated prompt), messages, max_tokens, temperature, seed
Mode = Callable[[Request], dict[str, Any]]  # gives text, tokens, first_seconds, seconds; drafted, accepted


def serve(load: Callable[[dict[str, Any]], dict[str, Mode | str]]) -> None:
    """Load by the first line's settings, say which modes there are, then answer line by line.

    In place of a mode that the peer lacks `load` gives the reason.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not mix in
    try:
        found = load(json.loads(sys.stdin.readline()))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), file=out)
        raise
    modes = {name: mode for name, mode in found.items() if not isinstance(mode, str)}
    absent = {name: mode for name, mode in found.items() if isinstance(mode, str)}
    print(json.dumps({"modes": list(modes), "absent": absent}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(modes[request["mode"]](request)), file=out)


class Stopwatch:
    """Seconds from the request to its first token and to its end."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first: float | None = None
        self.pieces = 0

    def tick(self) -> None:
        """A token, or several, arrived."""
        self.pieces += 1
        if self.first is None:
            self.first = time.perf_counter() - self.began

    def result(self, text: str, tokens: int, **more: Any) -> dict[str, Any]:
        seconds = time.perf_counter() - self.began
        first = seconds if self.first is None else self.first
        return {"text": text, "tokens": tokens, "first_seconds": first, "seconds": seconds, **more}
