"""Which conversations are loaded before a request runs, and saved after it."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from draftd.daemon.conversations import Conversation, Conversations
from draftd.daemon.engine import Engine
from draftd.daemon.places import WORTH_A_COPY
from draftd.daemon.pulse import READING
from draftd.daemon.request import Parked, Request
from draftd.daemon.scheduler import Work
from draftd.daemon.settings import Settings
from draftd.drafts.base import common_prefix
from draftd.ipc.errors import DraftdError, InvalidRequest
from draftd.models.catalog import Model, load_catalog
from draftd.models.digest import digest
from draftd.models.fetch import cached_path

log = logging.getLogger("draftd.engine")
MEGABYTE = 1_000_000
DIRECTORY = ("*.safetensors", "*.bin", "config.json")  # what of a transformers model its cache depends on


class Keeping:
    """Between the requests of one engine and the conversations on disk."""

    def __init__(self, settings: Settings, info: dict[str, Any], engine: Engine) -> None:
        self.engine = engine
        self.limit = settings.conversations_mb * MEGABYTE
        self._asks: list[Work] = []  # whom the weights are read for
        loaded = _stamps(settings)

        def make_identity() -> str:
            _check_same(settings, loaded)  # before gigabytes are read in vain, and behind
            made = identity(settings, info, lambda: engine.beat(READING, 0, self._asks))
            _check_same(settings, loaded)
            return made

        self.conversations = Conversations(settings.state_dir, self.limit, make_identity)

    def load(self, request: Request, body: dict[str, Any]) -> None:
        """Note a request's conversation; what it had is read once there is a slot for it."""
        if body["conversation"] is None or not self.limit:
            return
        if not body["app"]:
            raise InvalidRequest("a conversation belongs to an app: say hello with a name in `client`")
        which = Conversation(body["user"], body["app"], body["conversation"])
        self._asks = [Work(request, 0, last=False, prefill=False)]
        try:
            self.conversations.path(which)
        except (OSError, DraftdError) as error:  # the weights' files, which say whose caches these are
            log.warning("a conversation is not kept, for the model's files are not those loaded: %s", error)
            return
        request.conversation = which
        if request.reuse:  # of all that wait for a slot the caches might not fit into memory
            request.stored = lambda: self._read(request, which)

    def _read(self, request: Request, which: Conversation) -> Parked | None:
        """What a request's conversation had on disk, if that is more than what is in memory."""
        self.engine.beat(READING, 0, [Work(request, 0, last=False, prefill=False)])  # a disk may hang
        claimed = common_prefix(self.conversations.tokens(which), request.tokens)
        if claimed < self.engine.shared(request) + WORTH_A_COPY:
            return None
        found = self.conversations.load(which)
        return None if found is None else Parked(found[0], np.frombuffer(found[1], np.uint8))

    def save(self, request: Request) -> None:
        """Keep what was computed for a request that has ended just now."""
        if request.refused:
            log.warning("a saved cache was refused and computed again: %s", request.refused)
        if request.conversation is not None and (cache := self.engine.cache(request)) is not None:
            self.conversations.save(request.conversation, cache.tokens, cache.state.data)


def identity(settings: Settings, info: dict[str, Any], beat: Callable[[], None] = lambda: None) -> str:
    """What a cache's bytes depend on: the target's weights, and what computes with them.

    `beat` is called before each file is read.
    """
    target = load_catalog().pair(settings.pair).target
    parts = [
        sys.byteorder,
        info["backend"],
        str(info.get("dtype")),
        str(settings.gpu_layers != 0),
        *_weights(target, settings, beat),
    ]
    if info["backend"] == "llama_cpp":  # which takes a model's long or short rotary factors by the context
        parts += [version("llama_cpp_python"), str(info["context"])]
    else:
        parts.append(version("transformers"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(model: Model, settings: Settings) -> list[Path]:
    path = cached_path(model, settings.cache_dir)
    if path.is_dir():
        return sorted(file for pattern in DIRECTORY for file in path.glob(pattern))
    return [path]


def _weights(model: Model, settings: Settings, beat: Callable[[], None]) -> list[str]:
    """Their digests, and that of what a directory says of them: rotary factors, a window."""
    found = []
    for file in _files(model, settings):
        beat()  # all together may take longer than a step of the engine may
        found.append(digest(file, settings.cache_dir))
    return found


def _stamps(settings: Settings) -> dict[Path, tuple[int, int, int]]:
    """The target's files as they are now, by inode, size and time; what can't be read is not among them."""
    stamps = {}
    for file in _files(load_catalog().pair(settings.pair).target, settings):
        with suppress(OSError):
            status = file.stat()
            stamps[file] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return stamps


def _check_same(settings: Settings, loaded: dict[Path, tuple[int, int, int]]) -> None:
    """OSError if the files have changed: their digests would call another model's caches by this one's."""
    if _stamps(settings) != loaded:
        raise OSError("they have changed since")
