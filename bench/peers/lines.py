"""How a peer is driven: JSON lines over standard input and output, one answer a request.

Every peer runs in a process of its own, with the Python that has its library: this file uses nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Request = dict[str, Any]  # text (a templated prompt), messages, max_tokens, temperature, seed
Answer = dict[
    str, Any
]  # text, tokens, first_tokens, first_seconds, seconds; perhaps arrivals, rounds, drafted, accepted
Mode = Callable[[Request], Answer]
Build = Callable[[], Mode]  # loads what this mode alone needs

NONE = "no such form: "  # how a reason begins that is no failure: NO_FORM of bench/peer_process.py


def serve(offer: Callable[[dict[str, Any]], Mapping[str, Build | str]], *packages: str) -> None:
    """Offer modes by the first line's settings, build those that are wanted, then answer line by line.

    In place of a mode that the peer lacks `offer` gives the reason, which is told whatever is wanted. A mode
    that can't be built, or that fails at a request, says so for itself alone. `packages`: the peer's library,
    whose versions are told.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not mix in
    settings = json.loads(sys.stdin.readline())
    try:
        offered = offer(settings)
    except Exception as error:
        print(json.dumps({"error": said(error)}), file=out)
        raise
    modes: dict[str, Mode] = {}
    absent: dict[str, str] = {}
    for name, build in offered.items():
        if isinstance(build, str):
            absent[name] = NONE + build
            continue
        if settings["only"] is not None and name not in settings["only"]:
            continue
        if (left := memory_left()) < settings["mode_bytes"]:
            absent[name] = f"only {left >> 20} MiB of memory were left: end programs, or name fewer by --only"
        else:
            try:
                modes[name] = build()
            except Exception as error:
                traceback.print_exc()
                absent[name] = said(error)
    told = {"modes": list(modes), "absent": absent, "offered": list(offered)}
    print(json.dumps(told | {"version": ", ".join(map(released, packages))}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = modes[request["mode"]](request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": said(error)}
        print(json.dumps(answer), file=out)


def released(package: str) -> str:
    """A package with its version, as this interpreter has it."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} of unknown version"


def said(error: Exception) -> str:
    """A library's own words for what went wrong: the last line, where it names the cause.

    What is not implemented is no failure: there is no such form.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    begin = NONE if isinstance(error, NotImplementedError) else f"{type(error).__name__}: "
    return f"{begin}{lines[-1] if lines else 'without a word'}"[:300]


def memory_left() -> int:
    """Bytes that the machine can still give, its file cache included."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = dict(line.split(":", 1) for line in file)
    return int(found["MemAvailable"].split()[0]) * 1024


class Stopwatch:
    """Seconds from the request to each piece of its answer and to its end."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.arrivals: list[tuple[float, int]] = []  # of each piece, with the tokens that are there then

    def tick(self, tokens: int = 1) -> None:
        """A piece arrived: so many tokens, where the library tells."""
        before = self.arrivals[-1][1] if self.arrivals else 0
        self.arrivals.append((time.perf_counter() - self.began, before + tokens))

    def result(
        self, text: str, tokens: int, begin: Callable[[int], str] | None = None, **more: Any
    ) -> Answer:
        """The answer with its times; `begin`: the text of its first so many ticked tokens."""
        seconds = time.perf_counter() - self.began
        first, first_tokens = self.arrivals[0] if self.arrivals else (seconds, 1)
        times: Answer = {"first_seconds": first, "first_tokens": first_tokens, "seconds": seconds}
        if begin is not None:  # a character that is not whole yet is not shown
            shown = [len(begin(count).rstrip("\ufffd")) for _, count in self.arrivals]
            times["arrivals"] = [
                [when, length] for (when, _), length in zip(self.arrivals, shown, strict=True)
            ]
        return {"text": text, "tokens": tokens, **times, **more}
