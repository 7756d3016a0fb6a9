"""What the engine gives up on each rung of the governor's ladder, and takes up again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from draftd.daemon import machine
from draftd.daemon.engine import Engine
from draftd.daemon.governor import Rung
from draftd.daemon.loader import Loaded
from draftd.drafts.base import Draft
from draftd.drafts.by_tokens import TokenDraft
from draftd.ipc.errors import DraftdError

log = logging.getLogger("draftd.engine")

SHORT = 4  # tokens drafted a round at most


class Retreat:
    """Between two rounds, never within one."""

    def __init__(self, loaded: Loaded, engine: Engine) -> None:
        self.loaded = loaded
        self.engine = engine
        self.rung = Rung.NORMAL
        self._longest = loaded.drafting.controller.longest
        self._completed = False
        self._threads: int | None = None  # as told; a draft opened anew begins with all

    def to(self, rung: Rung) -> None:
        """Do what this rung asks for and undo what only lower ones do."""
        self.rung = rung
        drafting = self.loaded.drafting
        short = rung >= Rung.SHORT_DRAFTS
        drafting.controller.longest = min(SHORT, self._longest) if short else self._longest
        if rung >= Rung.NO_DRAFT:
            drafting.set_model(None)
        elif drafting.model is None and self.loaded.open_draft is not None:
            self._open(self.loaded.open_draft)
        self.tidy()

    @property
    def incomplete(self) -> bool:
        """Has the draft turned out to lack many tokens, which one with all of them would have?"""
        model = self.loaded.drafting.model
        return isinstance(model, TokenDraft) and model.lacking and not self._completed

    def complete(self) -> None:
        """Draft with all tokens from now on; tried once."""
        self._completed = True
        if self.loaded.whole_draft is not None:
            log.info("the draft lacks many tokens that the target says: it is loaded anew, with all of them")
            self.loaded.drafting.set_model(None)
            self._open(self.loaded.whole_draft)

    def _open(self, draft: Callable[[], Draft | None]) -> None:
        drafting = self.loaded.drafting
        try:
            drafting.set_model(draft())
        except DraftdError as error:
            log.warning("the target goes on alone: %s", error.message)
        if drafting.model is not None and self._threads is not None:
            drafting.model.set_threads(self._threads)

    def tidy(self) -> None:
        """Give back what slots without a request hold; call it again when requests have ended."""
        if self.rung >= Rung.DROP_CACHES:
            slots = self.engine.scheduler.drop_idle()
            self.loaded.target.drop(slots)
            if self.loaded.drafting.model is not None:
                self.loaded.drafting.model.drop(slots)
            machine.trim()

    def set_threads(self, count: int) -> None:
        """Compute with so many threads from the next round on."""
        self._threads = count
        self.loaded.target.set_threads(count)
        if self.loaded.drafting.model is not None:
            self.loaded.drafting.model.set_threads(count)
