"""Whether a draft's token ids mean the same to the target."""

from __future__ import annotations

from dataclasses import dataclass

from draftd.models.base import Tokenizer


@dataclass(frozen=True, slots=True)
class PairReport:
    """Whether the draft may propose to this target; `sentence` says why not."""

    ok: bool
    shared: int  # ids below this mean the same to both; a draft must propose none beyond
    sentence: str = ""  # the first difference that matters, and what to do
    notes: tuple[str, ...] = ()  # differences that do no harm


def check_pair(draft: Tokenizer, target: Tokenizer, draft_vocab: int, target_vocab: int) -> PairReport:
    """Compare two tokenizers id by id; `*_vocab` are the widths of the models' rows, padding included.

    Paddings may differ: a pair fits when all ids that both tokenizers name are the same tokens.
    """
    shared = min(draft.size, target.size, draft_vocab, target_vocab)
    ours = [draft.piece(token) for token in range(shared)]
    theirs = [target.piece(token) for token in range(shared)]
    if ours != theirs:
        token = next(index for index in range(shared) if ours[index] != theirs[index])
        same = shared - sum(a != b for a, b in zip(ours, theirs, strict=True))
        return PairReport(
            False,
            0,
            f"token id {token} is {ours[token]!r} in the draft, {theirs[token]!r} in the target "
            f"({same} of {shared} ids agree): choose a draft of the target's own family",
        )
    if missing := sorted(stop for stop in target.stop_ids if stop >= shared):
        return PairReport(
            False,
            0,
            f"the target stops at token id {missing[0]} ({target.piece(missing[0])!r}), "
            "which the draft does not have: choose a draft of the target's own family",
        )
    return PairReport(True, shared, notes=_notes(draft, target, draft_vocab, target_vocab))


def _notes(draft: Tokenizer, target: Tokenizer, draft_vocab: int, target_vocab: int) -> tuple[str, ...]:
    notes = []
    if draft_vocab != target_vocab:
        notes.append(f"the draft's rows are {draft_vocab} wide, the target's {target_vocab}")
    if draft.size != target.size:
        notes.append(f"the draft names {draft.size} tokens, the target {target.size}")
    if draft.stop_ids != target.stop_ids:
        notes.append(f"the draft stops at {sorted(draft.stop_ids)}, the target at {sorted(target.stop_ids)}")
    return tuple(notes)
