"""The daemon's log: lines with journald's priorities, `key=value` fields, and nobody's text in them.

Prompts and answers are never logged, and neither are the words of an unexpected exception, which may quote
them: a crash report names the exception's type and the places it went through. `log_content = true` changes
both, masked (daemon/mask.py).
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, TextIO

from draftd.daemon.mask import masked
from draftd.ipc.errors import DraftdError

MOST = 2000  # characters of one prompt or answer that are logged
EDGE = 100  # characters before a cut that may be half of a secret, which no pattern knows
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog's

HARMLESS = (ImportError, OSError, MemoryError)  # whose words are the system's, and tell what to mend

log = logging.getLogger("draftd.crash")
_content = False


def set_up(level: str, content: bool, stream: TextIO = sys.stderr) -> None:
    """Log to `stream` from `level` on; a second call changes the level and whether content is logged."""
    global _content
    _content = content
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Journal() if is_journal(stream) else OneLine())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def guard() -> None:
    """Crashes of this process leave frames and types, never values: no core file, no exception's words."""
    # A core file is the process's memory, prompts included; systemd-coredump obeys the same limit.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()
    sys.excepthook = _on_exception
    threading.excepthook = lambda given: _on_exception(given.exc_type, given.exc_value, given.exc_traceback)


def is_journal(stream: TextIO) -> bool:
    """Whether what is written here goes to the journal: $JOURNAL_STREAM names its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def fields(**values: Any) -> str:
    """` key=value` for each that is not None; a value that is more than a word is quoted as in JSON."""
    return "".join(f" {key}={_value(value)}" for key, value in values.items() if value is not None)


def content(text: str) -> str | None:
    """What may be logged of a prompt or an answer: nothing, or with `log_content` its beginning, masked."""
    if not _content:
        return None
    shown = masked(text[: 2 * MOST])  # masked before it is cut, so that no half of a secret slips through
    if len(text) > 2 * MOST:  # masks may have left less than MOST of it
        shown = shown[:-EDGE]
    elif len(shown) <= MOST:
        return shown
    return shown[:MOST] + " …"


def crash(error: BaseException, where: logging.Logger = log) -> None:
    """A crash report: the type and the frames it passed; its words only if they hold no content, or may."""
    frames = traceback.extract_tb(error.__traceback__)
    steps = ", ".join(f"{os.path.basename(at.filename)}:{at.lineno} {at.name}" for at in frames)
    words = str(error) if isinstance(error, HARMLESS) else content(str(error))
    where.critical("crash%s", fields(error=type(error).__name__, at=steps, message=words))


def told(error: Exception) -> DraftdError:
    """Log a fault of draftd's own; what the app hears whose request met it."""
    crash(error)
    return DraftdError(f"the daemon failed on this request ({type(error).__name__}): see its log")


class OneLine(logging.Formatter):
    """One record, one line, whatever is in it: no value starts a line of its own, or steers a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name}: {record.getMessage()}"
        if record.exc_info is not None and record.exc_info[0] is not None:
            text += fields(error=record.exc_info[0].__name__)
        return self.prefix(record) + "".join(
            each if each.isprintable() else json.dumps(each)[1:-1] for each in text
        )

    def prefix(self, record: logging.LogRecord) -> str:
        return f"{record.levelname} "


class Journal(OneLine):
    """The same for the journal, which takes the priority off the front of a line (sd-daemon(3))."""

    def prefix(self, record: logging.LogRecord) -> str:
        return f"<{next((number for level, number in PRIORITIES if record.levelno >= level), 7)}>"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text and not any(character in ' "=\\' or not character.isprintable() for character in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _on_exception(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
        return
    crash(error)
