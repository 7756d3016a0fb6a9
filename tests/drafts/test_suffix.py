"""The suffix draft against a brute-force search, and what makes it a prediction cache."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftd.drafts import suffix, suffix_history, suffix_index
from draftd.drafts.base import Context, Proposal
from draftd.drafts.suffix import DOUBT, SuffixDraft
from draftd.drafts.suffix_history import History
from draftd.drafts.suffix_index import DEPTH, END, Text
from draftd.drafts.suffix_store import SuffixStore, clear


def context(
    tokens: Sequence[int], limit: int = 64, slot: int = 0, scope: str = "", floor: float = 0.0
) -> Context:
    def no_choice(row: object, position: int) -> tuple[int, float]:
        raise AssertionError("a suffix draft has no logits to choose from")

    return Context(slot, tokens, limit, no_choice, lambda confidences: confidences[-1] >= floor, scope)


def propose(draft: SuffixDraft, tokens: Sequence[int], **how: object) -> list[int]:
    return draft.propose([context(tokens, **how)])[0].tokens  # type: ignore[arg-type]


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs so short that small texts have many of them, and are merged often."""
    monkeypatch.setattr(suffix_index, "TAIL", 4)
    monkeypatch.setattr(suffix_index, "RUN", 32)


# ---- the reference: look at every position of every sequence


def match_length(sequence: Sequence[int], position: int, own: Sequence[int]) -> int:
    length = 0
    while length <= position and length < len(own) and sequence[position - length] == own[-1 - length]:
        length += 1
    return length


def expected(earlier: Sequence[Sequence[int]], own: Sequence[int], limit: int) -> Proposal:
    """What should be proposed: longest match, own text first; then the majority, the newest if equal."""
    best: list[tuple[int, list[list[int]]]] = []
    for sequences in ([own], earlier):
        found = [
            (match_length(sequence, position, own), list(sequence[position + 1 : position + 1 + limit]))
            for sequence in reversed(sequences)
            for position in range(len(sequence) - 2, -1, -1)
        ]
        longest = max((length for length, _ in found), default=0)
        best.append((longest, [line for length, line in found if length == longest and length > 0]))
    length, lines = best[0] if best[0][0] >= best[1][0] else best[1]
    proposal = Proposal()
    for step in range(limit):
        nexts = [line[step] for line in lines if len(line) > step]
        if not nexts:
            break
        token = max(nexts, key=nexts.count)
        proposal.tokens.append(token)
        proposal.confidence.append(nexts.count(token) / (len(nexts) + DOUBT / (length + step)))
        lines = [line for line in lines if len(line) > step and line[step] == token]
    return proposal


sequences = st.integers(1, 3).flatmap(
    lambda top: st.lists(st.lists(st.integers(0, top), min_size=1, max_size=60), min_size=0, max_size=4)
)


@pytest.mark.usefixtures("small_runs")
@given(earlier=sequences, own=st.lists(st.integers(0, 3), min_size=1, max_size=120), chunk=st.integers(1, 50))
def test_proposes_what_a_brute_force_search_finds(
    earlier: list[list[int]], own: list[int], chunk: int
) -> None:
    draft = SuffixDraft()
    remembered: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_history, "SEQUENCES", 0)  # every sequence is stored whole
        patch.setattr(suffix_index, "CANDIDATES", 10_000)
        for sequence in earlier:
            draft.remember("", sequence)
            remembered.append(sequence)
        for end in range(chunk, len(own) + chunk, chunk):
            found = draft.propose([context(own[:end], limit=8)])[0]
            assert found == expected(remembered, own[:end], 8)


@pytest.mark.usefixtures("small_runs")
@given(st.lists(st.integers(0, 2), min_size=1, max_size=200), st.lists(st.integers(1, 40), min_size=1))
def test_a_text_that_grew_finds_what_one_added_at_once_finds(tokens: list[int], chunks: list[int]) -> None:
    grown, whole, later = Text(run=32), Text(run=32), Text(run=16)
    rest = list(tokens)
    for chunk in chunks * len(tokens):
        grown.append(rest[:chunk])
        del rest[:chunk]
    whole.append(tokens)
    later.append(tokens, later=True)
    while later.settle():
        pass
    for start in range(0, len(tokens), 7):
        question = Text()
        question.append(tokens[: start + 1])
        answer = grown.find(question.left_context())
        assert answer == whole.find(question.left_context())
        assert answer == later.find(question.left_context())


def test_matches_longer_than_the_sorted_depth_are_told_apart() -> None:
    common = list(range(100, 100 + 2 * DEPTH))
    draft = SuffixDraft()
    draft.remember("", [1, *common, 11])
    for _ in range(5):
        draft.remember("", [2, *common, 22])
    assert propose(draft, [1, *common]) == [11]
    assert propose(draft, [2, *common]) == [22]
    assert propose(draft, [3, *common]) == [22]  # equally long: the more frequent


def test_own_text_wins_when_matches_are_equally_long() -> None:
    draft = SuffixDraft()
    draft.remember("", [5, 6, 7])
    assert propose(draft, [5, 6, 8, 0, 5, 6], limit=1) == [8]
    assert propose(draft, [4, 5, 6], limit=1) == [7]


def test_the_newest_of_equally_frequent_goes_first() -> None:
    draft = SuffixDraft()
    for token in (7, 8, 9):
        draft.remember("", [5, 6, token])
    assert propose(draft, [5, 6]) == [9]


def test_confidence_grows_with_the_match_and_with_agreement() -> None:
    draft = SuffixDraft()
    draft.remember("", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    short, long = (
        draft.propose([context(tokens, slot=slot)])[0].confidence
        for slot, tokens in enumerate([[0, 3], [1, 2, 3]])
    )
    assert short == sorted(short)
    assert short[0] < long[0] < 1
    for _ in range(3):
        draft.remember("", [3, 4, random.random().__hash__() % 1000 + 10])
    agreed = draft.propose([context([0, 3])])[0].confidence
    assert agreed[0] > short[0]
    assert agreed[1] < agreed[0]  # they part behind 4


def test_stops_where_the_controller_says() -> None:
    draft = SuffixDraft()
    draft.remember("", [1, 2, 3, 4, 5, 6, 6, 7])
    assert propose(draft, [1, 2, 3], floor=1.0) == [4]
    assert propose(draft, [9, 1], floor=1 / (1 + DOUBT)) == [2, 3, 4, 5, 6, 6, 7]
    assert propose(draft, [1, 2, 3], limit=2) == [4, 5]
    assert propose(draft, [1, 2, 3], limit=0) == []


def test_a_repeated_question_replays_its_answer_in_few_rounds() -> None:
    pick = random.Random(1)
    question = [pick.randrange(1000) for _ in range(300)]
    answer = [pick.randrange(1000) for _ in range(500)]
    draft = SuffixDraft()
    for _ in range(3):  # other requests with the same beginning
        draft.remember("", [*question[:250], *(pick.randrange(1000) for _ in range(400))])
    draft.remember("", question + answer)
    tokens, rounds = [*question, answer[0]], 0  # the first token comes with the prompt
    while len(tokens) < len(question) + len(answer):
        drafted = propose(draft, tokens, floor=0.4)
        right = answer[len(tokens) - len(question) :]
        accepted = next(
            (n for n, pair in enumerate(zip(drafted, right, strict=False)) if pair[0] != pair[1]),
            len(drafted),
        )
        tokens += right[: accepted + 1]
        rounds += 1
    assert tokens == question + answer
    assert rounds == 8  # 499 tokens, 65 a round


def test_scopes_are_apart(tmp_path: Path) -> None:
    store = SuffixStore(tmp_path, "tokenizer")
    for draft in (SuffixDraft(store), SuffixDraft(store)):
        assert propose(draft, [1, 2, 3], scope="b") == []
        draft.remember("a", [1, 2, 3, 4, 5])
        assert propose(draft, [1, 2, 3], scope="b") == []
        assert propose(draft, [1, 2, 3], scope="") == []
        assert propose(draft, [1, 2, 3], scope="a") == [4, 5]


def test_slots_are_apart_and_forgotten() -> None:
    draft = SuffixDraft()
    one, two = draft.propose([context([1, 2, 3, 1], slot=0), context([1], slot=1)])
    assert (one.tokens, two.tokens) == ([2, 3, 1], [])
    draft.forget(0)
    draft.forget(5)
    assert len(draft) == 1
    draft.close()
    assert len(draft) == 0


def test_another_sequence_in_the_slot_starts_anew() -> None:
    draft = SuffixDraft()
    tokens = [1, 2, 3, 1]
    assert propose(draft, tokens) == [2, 3, 1]
    tokens += [2]
    assert propose(draft, tokens) == [3, 1, 2]
    assert propose(draft, [1, 2, 3]) == []  # rolled back
    assert propose(draft, [9, 2, 3, 4, 2]) == [3, 4, 2]  # another
    tokens[:] = [7, 8, 7]  # the same object, with other tokens
    assert propose(draft, tokens) == [8, 7]
    assert propose(draft, [7, 8, 7, 5, 1]) == []


def test_a_repeated_or_continued_sequence_adds_only_what_is_new() -> None:
    history = History(100_000)
    turns = [random.Random(2).randrange(10**6) for _ in range(3000)]
    assert history.add(turns[:1000]) is not None
    assert history.add(turns[:1000]) is None
    size = len(history)
    piece = history.add(turns[:2000])
    assert piece is not None
    assert (piece.length, list(piece.tokens)) == (2000, turns[1000 - suffix_history.CONTEXT : 2000])
    assert history.add(turns[:1000]) is None
    history.add(turns)
    assert len(history) == size + 2000 + 2 * suffix_history.CONTEXT + 2


def test_memory_is_bounded_and_the_newest_stays() -> None:
    pick = random.Random(3)
    draft = SuffixDraft(scope_tokens=2000, total_tokens=5000)
    requests = [[pick.randrange(10**6) for _ in range(100)] for _ in range(60)]
    favourite = [pick.randrange(10**6) for _ in range(100)]
    for request in requests:
        draft.remember("a", request)
        draft.remember("a", favourite)  # used again and again: never the one to go
        assert len(draft) <= 2000
    assert len(draft) > 1500
    assert propose(draft, requests[-1][:50], scope="a") == requests[-1][50:]
    assert propose(draft, requests[0][:50], scope="a") == []
    assert propose(draft, favourite[:50], scope="a") == favourite[50:]
    draft.forget(0)
    for scope in "bcd":
        for request in requests[:15]:
            draft.remember(scope, request)
        assert len(draft) <= 5000
        if scope == "c":
            assert propose(draft, requests[-1][:50], scope="a") == requests[-1][50:]
            draft.forget(0)
    assert propose(draft, requests[14][:50], scope="d") == requests[14][50:]
    assert propose(draft, requests[-1][:50], scope="a") == requests[-1][50:]
    assert propose(draft, requests[14][:50], scope="b") == []  # the scope used longest ago went


@pytest.mark.usefixtures("small_runs")
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=50), min_size=1, max_size=30))
def test_what_is_left_after_eviction_is_still_found(requests: list[list[int]]) -> None:
    history = History(200)
    for request in requests:
        history.add(request)
        assert len(history) <= 200
    text = history.text
    tokens = list(text.tokens)
    for last in range(DEPTH, len(tokens) - 1):
        if END in tokens[last : last + 2]:
            continue
        question = Text()
        start = last
        while start > DEPTH and tokens[start - 1] != END:
            start -= 1
        question.append(tokens[start : last + 1])
        match = text.find(question.left_context())
        assert match.length == min(last + 1 - start, DEPTH) or match.length > last + 1 - start
        assert last in match.positions or len(match.positions) == suffix_index.CANDIDATES


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    pick = random.Random(4)
    requests = [[pick.randrange(500) for _ in range(200)] for _ in range(20)]
    first = SuffixDraft(SuffixStore(tmp_path, "tokenizer"))
    for request in requests:
        first.remember("me", request)
    again = SuffixDraft(SuffixStore(tmp_path, "tokenizer"))
    other = SuffixDraft(SuffixStore(tmp_path, "another tokenizer"))
    for request in requests:
        asked = request[:100]
        assert propose(again, asked, scope="me") == propose(first, asked, scope="me") == request[100:164]
        assert propose(other, asked, scope="me") in ([], propose(SuffixDraft(), asked))
    again.remember("me", requests[3])  # known since the restart, too
    assert len(again) == len(first)
    clear(tmp_path)
    assert propose(SuffixDraft(SuffixStore(tmp_path, "tokenizer")), requests[0][:150], scope="me") == propose(
        SuffixDraft(), requests[0][:150]
    )


def test_the_formula_names_its_examples() -> None:
    for length, value in ((1, 0.25), (4, 0.57), (16, 0.84), (64, 0.96)):
        text = Text()
        text.append(array("I", [*range(length), 99]))
        proposal = suffix.follow(
            text, suffix_index.Match(length, [DEPTH + length - 1]), context([0], limit=1)
        )
        assert proposal.confidence == [pytest.approx(value, abs=0.005)]
