"""A draft that proposes what followed the longest matching context before; checked like any, so never stale.

A scope's earlier requests and this request's own text are searched; the longer match wins, its own text when
they are equally long. From there each step takes the token that most occurrences go on with, the newest if
equal: the counts along the path are those of SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from draftd.drafts.base import Context, Proposal, exchange
from draftd.drafts.suffix_history import History
from draftd.drafts.suffix_index import DEPTH, FULL, Match, Text, common_suffix
from draftd.drafts.suffix_store import SuffixStore

DOUBT = 3.0  # occurrences that disagree, imagined behind a match of one token; docs/suffix.md says why 3
SCOPES = 256  # in memory at most, however small


@dataclass(slots=True)
class _Own:
    """One slot's sequence."""

    tokens: Sequence[int]  # the object last seen, and
    text: Text = field(default_factory=Text)  # what it held then


class SuffixDraft:
    """drafts.base.Draft without a model; `store` keeps what `remember` is given across restarts."""

    def __init__(
        self,
        store: SuffixStore | None = None,
        *,
        scope_tokens: int = 1_000_000,
        total_tokens: int = 4_000_000,
    ) -> None:
        self._store = store
        self._scope_tokens = scope_tokens
        self._total_tokens = total_tokens
        self._own: dict[int, _Own] = {}  # by slot
        self._histories: OrderedDict[str, History] = OrderedDict()  # by scope, the one used last at the end

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        """One proposal a context: one-hot, so `choose` is not asked."""
        scopes = [context.scope for context in contexts if context.scope is not None]
        any(self._history(scope).text.settle() for scope in scopes)  # one run a round at most
        return [self._propose(context) for context in contexts]

    def remember(self, scope: str, tokens: Sequence[int]) -> None:
        """Learn an ended request, prompt and answer, for later ones of its scope."""
        history = self._history(scope)
        piece = history.add(tokens)
        if piece is not None and self._store is not None:
            self._store.append(scope, piece)
        self._evict()

    def forget(self, slot: int) -> None:
        """Drop a slot's own text; what was remembered stays."""
        self._own.pop(slot, None)

    def swap(self, one: int, other: int) -> None:
        """Two slots change places."""
        exchange(self._own, one, other)

    def clear(self) -> None:
        """Forget all that is in memory; the files are another matter (suffix_store.clear)."""
        self._own.clear()
        self._histories.clear()

    def close(self) -> None:
        """Free the memory; what was remembered is on disk already."""
        self.clear()

    def __len__(self) -> int:
        """Tokens in memory, of all scopes and slots."""
        return sum(map(len, self._histories.values())) + sum(len(own.text) for own in self._own.values())

    def _propose(self, context: Context) -> Proposal:
        if context.limit <= 0 or not context.tokens:
            return Proposal()
        own = self._own_text(context)
        ours = longest_match(own, own)
        if context.scope is not None:
            history = self._history(context.scope).text
            theirs = longest_match(history, own)
            if theirs.length > ours.length:
                return follow(history, theirs, context)
        return follow(own, ours, context)

    def _own_text(self, context: Context) -> Text:
        """The slot's text brought up to date: only new tokens are added, another sequence starts anew."""
        tokens, own = context.tokens, self._own.get(context.slot)
        if own is None or not _continues(own, tokens):
            own = self._own[context.slot] = _Own(tokens)
        own.text.append(tokens[len(own.text) :])
        own.tokens = tokens
        return own.text

    def _history(self, scope: str) -> History:
        history = self._histories.get(scope)
        if history is None:
            history = self._histories[scope] = History(self._scope_tokens)
            if self._store is not None:
                history.restore(self._store.load(scope))
            self._evict()
        self._histories.move_to_end(scope)
        return history

    def _evict(self) -> None:
        """Drop the scopes used longest ago while there is too much; the last one bounds itself."""
        total = sum(map(len, self._histories.values()))
        while len(self._histories) > 1 and (total > self._total_tokens or len(self._histories) > SCOPES):
            _, history = self._histories.popitem(last=False)
            total -= len(history)


def longest_match(text: Text, own: Text) -> Match:
    """Where a text holds the longest suffix of a request's own text, compared as far back as FULL tokens."""
    match = text.find(own.left_context())
    if match.length < DEPTH:
        return match
    end = len(own.tokens)
    positions, length = match.positions, match.length
    for most in (8 * DEPTH, FULL):  # most candidates differ soon
        most = min(most, len(own))
        lengths = [common_suffix(own.tokens, end, text.tokens, at + 1, most) for at in positions]
        length = max(lengths)
        positions = [at for at, one in zip(positions, lengths, strict=True) if one == length]
        if length < most:
            break
    return Match(length, positions)


def follow(text: Text, match: Match, context: Context) -> Proposal:
    """The path most occurrences take from a match.

    A token's confidence is c / (n + DOUBT / m): c of the n occurrences that took the path so far go on with
    it, and m tokens match by then. So one occurrence after 1, 4, 16, 64 tokens counts 0.25, 0.57, 0.84, 0.96.
    """
    proposal = Proposal()
    lines = [text.following(position, context.limit) for position in match.positions]
    for step in range(context.limit):
        counts: dict[int, int] = {}
        for line in lines:
            if step < len(line):
                counts[line[step]] = counts.get(line[step], 0) + 1
        if not counts:
            break
        token = max(counts, key=counts.__getitem__)  # the first of the largest: the newest
        doubt = DOUBT / (match.length + step)
        proposal.tokens.append(token)
        proposal.confidence.append(counts[token] / (sum(counts.values()) + doubt))
        if not context.proceed(proposal.confidence):
            break
        if len(lines) > 1:
            lines = [line for line in lines if step < len(line) and line[step] == token]
    return proposal


def _continues(own: _Own, tokens: Sequence[int]) -> bool:
    """Does a sequence begin with its slot's text? Of the object seen last only the end is compared."""
    count = len(own.text)
    if len(tokens) < count:
        return False
    compared = min(count, DEPTH) if tokens is own.tokens else count
    return own.text.tokens[-compared:].tolist() == list(tokens[count - compared : count])
