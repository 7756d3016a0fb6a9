"""The draft by text, over a scripted draft: letters and words of the draft, tokens of a real tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from draftd.drafts.base import Context, Proposal
from draftd.drafts.by_text import TextDraft
from draftd.models.hf_tokenizer import HfTokenizer
from draftd.models.spelling import Spelling
from draftd.models.translation import Translation
from tests.fakes import ScriptedDraft
from tests.tiny import retokenize, write_tiny

MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "t"), ("Ġt", "o"), ("o", "o"))
VOCAB = 272


def speller(translation: Translation, *says: bytes | int, sure: float = 30.0) -> ScriptedDraft:
    """A draft that says a text: its tokens are this translation's."""
    tokens = [
        token
        for each in says
        for token in ([each] if isinstance(each, int) else translation.draft.spell(each))
    ]
    return ScriptedDraft(VOCAB, *tokens, sure=sure)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Translation:
    """A draft of letters for a target of MERGES."""
    root = tmp_path_factory.mktemp("letters")
    plain = write_tiny(root / "plain")
    merged = retokenize(plain, root / "merged", MERGES)
    ours, theirs = (Spelling(HfTokenizer.load(path)) for path in (plain, merged))
    return Translation(ours, theirs, VOCAB, VOCAB)


@pytest.fixture(scope="module")
def words(letters: Translation) -> Translation:
    """The other way round."""
    return Translation(letters.target, letters.draft, VOCAB, VOCAB)


def ask(
    draft: TextDraft,
    tokens: list[int],
    limit: int = 16,
    proceed: Callable[[Sequence[float]], bool] = lambda _: True,
) -> Proposal:
    def choose(row: object, position: int) -> tuple[int, float]:
        raise AssertionError("the draft is greedy in its own tokens")

    return draft.propose([Context(0, tokens, limit, choose, proceed)])[0]


def test_the_text_is_cut_as_the_target_cuts_it(letters: Translation) -> None:
    draft = speller(letters, b"the tin too")
    proposal = ask(TextDraft(draft, letters), letters.target.spell(b"in "))
    said = letters.target.spell(b"the tin too")
    assert proposal.tokens == said[:-1], "the last token may go on"
    assert letters.target.join(proposal.tokens) == b"the tin to"
    assert draft.asked == [[*b"in "]]


def test_a_token_made_of_several_letters_waits_for_what_follows(letters: Translation) -> None:
    assert ask(TextDraft(speller(letters, b"th"), letters), [97]).tokens == []
    assert ask(TextDraft(speller(letters, b"th", b"o"), letters), [97]).tokens == letters.target.spell(b"th")
    assert ask(TextDraft(speller(letters, b"th", b"e"), letters), [97]).tokens == []


def test_a_whole_word_of_the_drafts_own_is_kept(words: Translation) -> None:
    assert ask(TextDraft(speller(words, b"the"), words), [*b"in"]).tokens == [*b"the"]
    assert ask(TextDraft(speller(words, b"the", b"o"), words), [*b"in"]).tokens == [*b"the"]


def test_the_drafts_end_ends_the_text(letters: Translation) -> None:
    end = letters.draft.controls["<|im_end|>"]
    tokens = ask(TextDraft(speller(letters, b"in", end, b"the"), letters), [97]).tokens
    assert tokens == [*letters.target.spell(b"in"), letters.target.controls["<|im_end|>"]]


def test_confidence_is_the_product_of_the_letters(letters: Translation) -> None:
    draft = speller(letters, b"the in", sure=4.0)
    proposal = ask(TextDraft(draft, letters), [97])
    each = float(np.exp(4.0) / (np.exp(4.0) + VOCAB - 1))
    assert letters.target.join(proposal.tokens) == b"the "
    assert proposal.confidence == pytest.approx([each**3, each])


def test_limit_and_doubt_end_it(letters: Translation) -> None:
    draft = speller(letters, b"the in the in the in")
    assert len(ask(TextDraft(draft, letters), [97], limit=2).tokens) == 2
    assert draft.steps < 8
    asked: list[list[float]] = []

    def proceed(confidences: Sequence[float]) -> bool:
        asked.append(list(confidences))
        return len(confidences) < 3

    assert len(ask(TextDraft(draft, letters), [97], proceed=proceed).tokens) == 3
    assert all(asked), "nothing is asked before there is a token"


def test_a_character_may_be_parted(letters: Translation) -> None:
    euro = "€".encode()
    before = letters.target.spell(b"in " + euro[:1])
    draft = speller(letters, euro[1:] + b"in", b"o")
    proposal = ask(TextDraft(draft, letters), before)
    assert draft.asked == [[*b"in ", *euro[:1]]]
    assert letters.target.join([*before, *proposal.tokens]) == b"in " + euro + b"in"
    assert ask(TextDraft(speller(letters, b"o", euro[:2]), letters), [97]).tokens == []


def test_a_context_is_retokenised_from_its_last_words_on(words: Translation) -> None:
    inner = speller(words, b"in")
    draft = TextDraft(inner, words)
    text = b"the tool in the tin to the tool"
    for length in range(1, len(text) + 1):
        ask(draft, [*text[:length]])
        assert inner.asked[-1] == words.draft.spell(text[:length]), text[:length]
    ask(draft, [*b"the to the in"])
    assert inner.asked[-1] == words.draft.spell(b"the to the in"), "another sequence starts anew"
    draft.forget(0)
    ask(draft, [*text])
    assert inner.asked[-1] == words.draft.spell(text)


def test_only_new_words_are_retokenised(words: Translation, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = TextDraft(speller(words, b"in"), words)
    text = [*(b"the tool in the tin " * 20)]
    ask(draft, text)
    seen: list[int] = []
    original = words.retokenised

    def watch(tokens: Sequence[int], whole: bool = True) -> list[int]:
        seen.append(len(tokens))
        return original(tokens, whole)

    monkeypatch.setattr(words, "retokenised", watch)
    ask(draft, [*text, *b"too"])
    assert sum(seen) < 20
