"""How a draft's tokens reach a target: the same ids, shared or kept tokens, or text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draftd.ipc.errors import IncompatiblePair
from draftd.models import trim
from draftd.models.base import Tokenizer
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.spelling import Spelling
from draftd.models.translation import Translation

By = Literal["ids", "tokens", "text"]

ENOUGH = 0.95  # of a text's tokens must be shared to draft by them; docs/drafts.md has the measurement


@dataclass(frozen=True, slots=True)
class PairReport:
    """How the draft proposes to this target; `sentence` says it to people."""

    by: By
    shared: int  # by ids: those below this mean the same to both, and a draft must propose none beyond
    sentence: str
    notes: tuple[str, ...] = ()  # differences that do no harm
    translation: Translation | None = None  # between different tokenizers
    trimmed: trim.Trimmed | None = None  # of a draft that has kept some of the target's tokens only


def check_file(
    draft: Path, target: Tokenizer, draft_vocab: int, target_vocab: int, sample: str
) -> PairReport:
    """As `check_pair`, of a draft in a GGUF file; one that was trimmed knows tokens of its target's own."""
    if (trimmed := trim.read(draft, target_vocab)) is not None:
        gone = trimmed.rows - len(trimmed.kept)
        sentence = f"the same tokenizer, less {gone:,} tokens of scripts that were not in use here"
        return PairReport("tokens", 0, sentence, trimmed=trimmed)
    return check_pair(GGUFTokenizer(draft), target, draft_vocab, target_vocab, sample)


def check_pair(
    draft: Tokenizer, target: Tokenizer, draft_vocab: int, target_vocab: int, sample: str
) -> PairReport:
    """Compare two tokenizers id by id; `*_vocab` are the widths of the models' rows, padding included.

    Paddings may differ: ids are the same when all that both tokenizers name are the same tokens, and the
    target's stops are among them. If they are not, `sample` is a text that shows how many tokens are shared.
    Raises IncompatiblePair when the draft's tokenizer has no tokens for ordinary text.
    """
    shared = min(draft.size, target.size, draft_vocab, target_vocab)
    ours = [draft.piece(token) for token in range(shared)]
    theirs = [target.piece(token) for token in range(shared)]
    if ours == theirs and all(stop < shared for stop in target.stop_ids):
        notes = _notes(draft, target, draft_vocab, target_vocab)
        return PairReport("ids", shared, "the same tokenizer", notes)
    words = Spelling(draft)
    if words.join(words.spell(sample.encode())) != sample.encode():
        raise IncompatiblePair(
            "the draft's tokenizer can't spell an ordinary text: choose one that keeps all of a text"
        )
    translation = Translation(words, Spelling(target), draft_vocab, target_vocab)
    share = translation.share(sample)
    by: By = "tokens" if share >= ENOUGH else "text"
    how = "shared tokens" if by == "tokens" else "text"
    sentence = (
        f"different tokenizers: drafting by {how} ({100 * share:.0f} % of a sample text's tokens are shared)"
    )
    return PairReport(by, 0, sentence, translation=translation)


def _notes(draft: Tokenizer, target: Tokenizer, draft_vocab: int, target_vocab: int) -> tuple[str, ...]:
    notes = []
    if draft_vocab != target_vocab:
        notes.append(f"the draft's rows are {draft_vocab} wide, the target's {target_vocab}")
    if draft.size != target.size:
        notes.append(f"the draft names {draft.size} tokens, the target {target.size}")
    if draft.stop_ids != target.stop_ids:
        notes.append(f"the draft stops at {sorted(draft.stop_ids)}, the target at {sorted(target.stop_ids)}")
    return tuple(notes)
