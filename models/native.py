"""The one thread of a process on which llama.cpp computes, and what llama.cpp last complained about.

torch (oneDNN) and llama.cpp each configure the AMX tiles of the thread they run on and neither expects the
other: sharing a thread ends in an illegal instruction. So every model of llama.cpp, target and draft alike,
is loaded, run and freed here, and torch never is. A call costs some 25 microseconds more than a direct one.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import llama_cpp

P = ParamSpec("P")
T = TypeVar("T")

_WARN, _ERROR = 3, 4  # ggml_log_level
_complaints: deque[str] = deque(maxlen=32)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _log(level: int, text: bytes, _: ctypes.c_void_p) -> None:
    if level in (_WARN, _ERROR):
        _complaints.append(text.decode("utf-8", "replace").strip())


def _start() -> None:
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llama.cpp", initializer=_start)


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call on llama.cpp's thread and wait; never from that thread itself."""
    return _thread.submit(function, *args, **kwargs).result()


def complaints(clear: bool = False) -> str:
    """llama.cpp's last warnings and errors, joined; empty when it had none."""
    text = "; ".join(line for line in _complaints if line)
    if clear:
        _complaints.clear()
    return text
