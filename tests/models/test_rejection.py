"""The verifiers enumerated: whatever the draft, what comes out has the target's law, to the last digit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.models import rejection, verify
from draftd.models.processors import Penalties, Processors
from draftd.models.rejection import Dice, Law, law_of, one_hot, verify_block, verify_rejection, verify_tokens
from draftd.models.sampling import Sampling
from tests.enumeration import EXACT, SIZES, Laws, Tokens, completed, exact, outcomes, total_variation, toy

Draft = Callable[[Dice], tuple[list[int], list[Law]]]  # drafted tokens, and the laws handed over with them
Verify = Callable[[rejection.Laws, Sequence[Law], Sequence[int], Dice], list[int]]
verifiers = pytest.mark.parametrize("verifier", [verify_tokens, verify_block])


def error(verifier: Verify, p: Laws, draft: Draft, vocab: int, length: int) -> float:
    """How far one round is from the target's law of the next `length` + 1 tokens."""

    def run(dice: Dice) -> Tokens:
        drafted, q = draft(dice)
        return tuple(verifier(lambda i: p(tuple(drafted[:i])), q, drafted, dice))

    law = completed(outcomes(run), p, vocab, length + 1)
    return total_variation(law, exact(p, vocab, length + 1))


def drawing(q: Laws, length: int, go_on: Callable[[Tokens], bool] = lambda drafted: True) -> Draft:
    """A model that drafts up to `length` tokens and hands over what it drew them from."""

    def draft(dice: Dice) -> tuple[list[int], list[Law]]:
        drafted: list[int] = []
        laws: list[Law] = []
        while len(drafted) < length and go_on(tuple(drafted)):
            laws.append(q(tuple(drafted)))
            drafted.append(dice.draw(laws[-1]))
        return drafted, laws

    return draft


@verifiers
@pytest.mark.parametrize(("vocab", "length"), SIZES)
def test_a_round_has_the_targets_law(verifier: Verify, vocab: int, length: int) -> None:
    for noise in (0.0, 0.7, 3.0) if vocab**length < 50 else (0.7,):
        p, q = toy(vocab, length), toy(vocab, length, noise)
        assert error(verifier, p, drawing(q, length), vocab, length) < EXACT


@verifiers
def test_where_a_draft_stops_may_depend_on_what_it_drew(verifier: Verify) -> None:
    p, q = toy(3, 1), toy(3, 1, 1.0)
    draft = drawing(q, 3, go_on=lambda drafted: not drafted or drafted[-1] != 0)
    assert error(verifier, p, draft, 3, 3) < EXACT


@verifiers
def test_where_the_target_cant_go_on_the_round_ends_and_the_law_is_kept(verifier: Verify) -> None:
    """Behind token 0 is no law, as where a grammar gives up: nothing is said there, all else is kept."""
    p, q = toy(3, 1), toy(3, 1, 1.0)

    def run(dice: Dice) -> Tokens:
        drafted, laws = drawing(q, 3)(dice)

        def here(i: int) -> Law | None:
            return None if 0 in drafted[:i] else p(tuple(drafted[:i]))

        said = tuple(verifier(here, laws, drafted, dice))
        assert 0 not in said[:-1]
        return said

    law = outcomes(run)
    assert {len(said) for said in law} == {1, 2, 3, 4}
    assert total_variation(completed(law, p, 3, 4), exact(p, 3, 4)) < EXACT


@verifiers
def test_rounds_in_a_row_have_the_targets_law(verifier: Verify) -> None:
    p, q = toy(2, 3), toy(2, 3, 1.0)

    def go_on(dice: Dice, start: Tokens = ()) -> Tokens:
        if len(start) == 4:
            return start
        drafted, laws = drawing(lambda prefix: q(start + prefix), 3 - len(start))(dice)
        given = verifier(lambda i: p(start + tuple(drafted[:i])), laws, drafted, dice)
        return go_on(dice, start + tuple(given))

    assert total_variation(outcomes(go_on), exact(p, 2, 4)) < EXACT


@verifiers
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_found_draft_may_be_any_tokens(verifier: Verify, length: int) -> None:
    p = toy(3, 5)
    for drafted in itertools.product(range(3), repeat=length):
        laws = [one_hot(token) for token in drafted]
        assert error(verifier, p, lambda dice, given=(list(drafted), laws): given, 3, length) < EXACT  # type: ignore[misc]


@verifiers
def test_one_hot_laws_are_exact_for_drawn_tokens_too_and_for_dropping_some(verifier: Verify) -> None:
    p, q = toy(4, 2), toy(4, 2, 1.0)

    def draft(dice: Dice) -> tuple[list[int], list[Law]]:
        drafted, laws = drawing(q, 2)(dice)
        kept = drafted[: 1 + (laws[1].of(drafted[1]) > 0.2)]
        return kept, [one_hot(token) for token in kept]

    assert error(verifier, p, draft, 4, 2) < EXACT


@verifiers
def test_zero_probabilities_on_either_side_are_no_obstacle(verifier: Verify) -> None:
    """Kept sets that differ, as top-k leaves them, and a draft with a narrower vocabulary."""
    target, drafting = toy(5, 4), toy(5, 4, 1.0)

    def cut(law: Law, kept: list[int]) -> Law:
        weights = law.weights[kept]
        return Law(weights / weights.sum(), np.array(kept))

    @cache
    def p(prefix: Tokens) -> Law:
        return cut(target(prefix), [[0, 1, 3], [1, 2, 4], [2]][sum(prefix) % 3])

    @cache
    def q(prefix: Tokens) -> Law:
        narrow = drafting(prefix).weights[:4]
        return [Law(narrow / narrow.sum()), cut(drafting(prefix), [0, 2])][sum(prefix) % 2]

    assert error(verifier, p, drawing(q, 3), 5, 3) < EXACT


def greedy(q: Laws, dice: Dice, drafted: list[int], laws: list[Law]) -> bool:
    """Takes the draft's likeliest token and calls it a sample of its softmax."""
    laws.append(q(tuple(drafted)))
    drafted.append(int(laws[-1].weights.argmax()))
    return True


def truncated(q: Laws, dice: Dice, drafted: list[int], laws: list[Law]) -> bool:
    """Draws from the top two, and hands over the law of all."""
    laws.append(q(tuple(drafted)))
    top = np.sort(np.argsort(laws[-1].weights)[-2:])
    drafted.append(dice.draw(Law(laws[-1].weights[top], top)))
    return True


def dropped(q: Laws, dice: Dice, drafted: list[int], laws: list[Law]) -> bool:
    """Draws, and leaves out what turned out to be unlikely."""
    law = q(tuple(drafted))
    token = dice.draw(law)
    if law.of(token) < 0.15:
        return False
    laws.append(law)
    drafted.append(token)
    return True


def rounded(q: Laws, dice: Dice, drafted: list[int], laws: list[Law]) -> bool:
    """Draws, and rounds the law before it is handed over."""
    law = q(tuple(drafted))
    drafted.append(dice.draw(law))
    laws.append(Law(np.maximum(np.round(law.weights * 32), 1) / 32))
    return True


@verifiers
@pytest.mark.parametrize(
    ("mutant", "wrong_by"), [(greedy, 0.44), (truncated, 0.20), (dropped, 0.11), (rounded, 0.02)]
)
def test_what_others_get_wrong_shows(verifier: Verify, mutant: Callable[..., bool], wrong_by: float) -> None:
    """Mean of eight tables of four tokens and two drafted ones, the draft's logits off by 0.7."""
    errors = []
    for seed in range(8):
        p, q = toy(4, seed), toy(4, seed, 0.7)

        def draft(dice: Dice, q: Laws = q) -> tuple[list[int], list[Law]]:
            drafted: list[int] = []
            laws: list[Law] = []
            while len(drafted) < 2 and mutant(q, dice, drafted, laws):
                pass
            return drafted, laws

        errors.append(error(verifier, p, draft, 4, 2))
    assert np.mean(errors) == pytest.approx(wrong_by, rel=0.15)
    assert min(errors) > 1e9 * EXACT


def test_a_block_accepts_at_least_as_many() -> None:
    for noise in (0.5, 1.0, 2.0):
        p, q = toy(3, 7), toy(3, 7, noise)
        accepted = []
        for verifier in (verify_tokens, verify_block):

            def run(dice: Dice, verifier: Verify = verifier, p: Laws = p, q: Laws = q) -> int:
                drafted, laws = drawing(q, 3)(dice)
                return len(verifier(lambda i: p(tuple(drafted[:i])), laws, drafted, dice)) - 1

            accepted.append(sum(count * chance for count, chance in outcomes(run).items()))
        assert accepted[1] > 1.001 * accepted[0] > 0


@pytest.mark.parametrize("how", ["rejection", "rejection-token"])
@given(seed=st.integers(0, 1000), drafted=st.lists(st.integers(0, 5), max_size=4), drawn=st.booleans())
@settings(max_examples=60)
def test_greedy_is_what_the_target_says_alone(
    how: rejection.Rejection, seed: int, drafted: list[int], drawn: bool
) -> None:
    rows = np.random.default_rng(seed).standard_normal((len(drafted) + 1, 6)).astype(np.float32)
    if drawn:  # by a draft that agrees now and then
        drafted = [
            int(row.argmax()) if token > 1 else token for row, token in zip(rows, drafted, strict=False)
        ]
    laws = [one_hot(token) for token in drafted]
    got = verify_rejection(rows, drafted, laws, how, Sampling(0.0), Dice(seed))
    assert got == verify.verify(rows, drafted, Sampling(0.0), 0)


@pytest.mark.parametrize("how", ["rejection", "rejection-token"])
def test_each_row_is_processed_behind_its_own_prefix(how: rejection.Rejection) -> None:
    """A penalty on repetition, with the chain on both sides: the law is that of the target alone."""
    sampling, penalties = Sampling(0.8, top_k=3, min_p=0.05), Penalties(frequency=2.0, bias=((1, 0.5),))
    prompt = [0, 3]

    @cache
    def law(prefix: Tokens, noise: float) -> Law:
        row = np.log(toy(4, 8, noise)(prefix).weights).astype(np.float32)
        fresh = Processors(penalties, prompt)
        fresh.accept(prefix)
        fresh.apply(row)
        return law_of(row, sampling)

    def run(dice: Dice) -> Tokens:
        drafted, laws = drawing(lambda prefix: law(prefix, 1.0), 3)(dice)
        rows = np.stack([np.log(toy(4, 8)(tuple(drafted[:i])).weights) for i in range(len(drafted) + 1)])
        given = (how, sampling, dice, Processors(penalties, prompt))
        return tuple(verify_rejection(rows.astype(np.float32), drafted, laws, *given))

    def p(prefix: Tokens) -> Law:
        return law(prefix, 0.0)

    assert total_variation(completed(outcomes(run), p, 4, 4), exact(p, 4, 4)) < EXACT
