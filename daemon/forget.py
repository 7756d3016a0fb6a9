"""What `draftd cache clear` removes from the state directory."""

from __future__ import annotations

from pathlib import Path

from draftd.daemon import conversations, learnt
from draftd.drafts import suffix_store
from draftd.ipc.errors import InvalidConfig


def clear(state_dir: Path, figures: bool) -> int:
    """Remove the history that repeated text is drafted from and the conversations that apps had kept.

    On demand also what was learnt of the pairs.

    The number of files that were there. Raises InvalidConfig naming what can't be removed.
    """
    try:
        return (
            suffix_store.clear(state_dir)
            + conversations.clear(state_dir)
            + (learnt.clear(state_dir) if figures else 0)
        )
    except OSError as error:
        raise InvalidConfig(f"cannot clear the history in {state_dir}: {error.strerror or error}") from None
