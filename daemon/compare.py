"""Two files' tokenizers compared, as a process of its own: a llama.cpp that crashes takes nothing with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from draftd.daemon.tuned import sample_text
from draftd.ipc.errors import DraftdError
from draftd.models.base import Tokenizer


def compare(draft: Path, target: Path) -> str:
    """How the draft's tokens reach the target, in a sentence; IncompatiblePair if they can't."""
    from draftd.models.gguf_tokenizer import GGUFTokenizer
    from draftd.models.hf_tokenizer import HfTokenizer
    from draftd.models.pair import check_pair

    ours: Tokenizer = GGUFTokenizer(draft)
    theirs: Tokenizer = HfTokenizer.load(target) if target.is_dir() else GGUFTokenizer(target)
    return check_pair(ours, theirs, ours.size, theirs.size, sample_text()).sentence


if __name__ == "__main__":
    try:
        found = {"sentence": compare(Path(sys.argv[1]), Path(sys.argv[2]))}
    except DraftdError as error:
        found = {"wrong": error.message}
    print(json.dumps(found))
