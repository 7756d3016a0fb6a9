"""Tokens of a draft's vocabulary for those of a target's with another tokenizer, and back.

Tokens are the same if they add the same bytes to a text, control tokens if they have the same name. The
draft's logits of shared tokens become a row of the target's (token-level intersection: Timor et al. 2025,
arXiv 2502.05202, algorithm 4), so that the target's ids choose the noise and drafts are accepted as often as
those of one tokenizer. What is not shared is spelled in the draft's tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from draftd.models.spelling import Spelling

ABSENT = np.float32(-1e9)  # of a token that the draft lacks: chosen only where a grammar leaves no other
REMEMBERED = 1 << 16  # words whose spelling is kept
_WORD = re.compile(rb" ?\S+|\s+?(?= \S)|\s+")  # a space goes with the word behind it, as tokenizers have it


class Translation:
    """Between two vocabularies; `*_vocab` are the widths of the models' rows."""

    def __init__(self, draft: Spelling, target: Spelling, draft_vocab: int, target_vocab: int) -> None:
        self.draft = draft
        self.target = target
        pairs = _shared(draft, target)
        pairs = [(one, other) for one, other in pairs if one < draft_vocab and other < target_vocab]
        self._absent = draft_vocab
        self._sources = np.full(target_vocab, draft_vocab, np.int64)  # [target_vocab] draft ids
        self._sources[[other for _, other in pairs]] = [one for one, _ in pairs]
        self._targets = dict(pairs)
        self._ids: dict[int, tuple[int, ...]] = {other: (one,) for one, other in pairs}
        self._names = {token: piece.encode() for piece, token in target.controls.items()}
        self._word = lru_cache(REMEMBERED)(lambda word: tuple(draft.spell(word)))

    def share(self, text: str) -> float:
        """The share of a text's tokens, as the target spells it, that the draft has too; 0 to 1."""
        tokens = self.target.spell(text.encode())
        return sum(self.draft_id(token) is not None for token in tokens) / max(1, len(tokens))

    def row(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """The draft's logits of the shared tokens as a row of the target's."""  # [draft] -> [target]
        return np.append(row, ABSENT)[self._sources]

    def draft_id(self, token: int) -> int | None:
        """The draft's id of a target's token, None if it has none."""
        found = int(self._sources[token]) if token < len(self._sources) else self._absent
        return None if found == self._absent else found

    def target_id(self, token: int) -> int | None:
        """The target's id of a draft's token, None if it has none."""
        return self._targets.get(token)

    def draft_ids(self, tokens: Sequence[int]) -> list[int]:
        """A sequence of the target's in the draft's tokens: shared ones as they are, the others spelled."""
        return self._led([one for token in tokens for one in self._ids.get(token) or self._spelled(token)])

    def lengths(self, tokens: Sequence[int]) -> list[int]:
        """How many of `draft_ids` each token became, what the draft's prompts begin with apart."""
        return [len(self._ids.get(token) or self._spelled(token)) for token in tokens]

    def retokenised(self, tokens: Sequence[int], whole: bool = True) -> list[int]:
        """The text of a sequence as the draft's own tokenizer spells it, shared control tokens in between.

        `whole`: it is the beginning of a sequence.
        """
        ids: list[int] = []
        text = bytearray()
        for token in tokens:
            control = self.draft_id(token) if token in self._names else None
            if control is None:
                text += self._text(token)
            else:
                ids += [*self._words(text), control]
                text.clear()
        ids += self._words(text)
        return self._led(ids) if whole else ids

    def cut(self, tokens: Sequence[int]) -> int:
        """The last index, 0 if none is near, at which a sequence can be parted and retokenised by parts."""
        for index in range(len(tokens) - 1, max(0, len(tokens) - 256), -1):
            before, word = self._text(tokens[index - 1]), b"".join(map(self._text, tokens[index : index + 2]))
            if word[:1] == b" " and word[1:2].strip() and not before[-1:].isspace():
                return index
        return 0

    def _led(self, ids: list[int]) -> list[int]:
        leading = self.draft.leading
        return ids if ids[: len(leading)] == leading else leading + ids

    def _words(self, text: bytearray) -> list[int]:
        return [token for word in _WORD.findall(bytes(text)) for token in self._word(word)]

    def _text(self, token: int) -> bytes:
        """A token's text; of a control token its name, of an id beyond the vocabulary nothing."""
        if token in self._names:
            return self._names[token]
        return self.target.text(token)

    def _spelled(self, token: int) -> tuple[int, ...]:
        found = self._ids[token] = tuple(self.draft.spell(self._text(token)))
        return found


def _shared(draft: Spelling, target: Spelling) -> list[tuple[int, int]]:
    """The tokens that both have: the draft's id and the target's."""
    ours, theirs = draft.ids(), target.ids()
    pairs = [(ours[text], theirs[text]) for text in ours.keys() & theirs.keys()]
    names = draft.controls.keys() & target.controls.keys()
    return pairs + [(draft.controls[name], target.controls[name]) for name in names]
