"""What a plan lets a draft go on with, and what of it is kept."""

from __future__ import annotations

from draftd.daemon.plan import Plan


def test_a_chain_tells_its_sources_apart() -> None:
    rates = ([0.9] * 14, [0.1] * 14)
    plan = Plan("chain", 8, found=2, price=1.0, rates=rates, ahead=0.9, steps=[0.5], rows=[0.0] * 9)
    assert plan.proceed([0.5, 0.5])  # 0.81: the suffix's
    assert not plan.proceed([0.5, 0.5, 0.5])  # 0.081: a token of the model
    assert not Plan("chain", 8, 0, 1.0, rates, 0.9, [0.5], [0.0] * 9).proceed([0.5, 0.5])


def test_only_tokens_worth_their_rows_are_kept() -> None:
    rates = ([0.5] * 14, [0.5] * 14)
    cheap = Plan("model", 8, 0, 1.0, rates, 0.9, [0.0], [0.0] * 9)
    dear = Plan("model", 8, 0, 1.0, rates, 0.9, [0.0], [0.2 * row for row in range(9)])
    step = Plan("model", 8, 0, 1.0, rates, 0.9, [0.0], [0.0, 0.7, 0.7, 0.7, 0.7, 2.0, 2.0, 2.0, 2.0])
    assert [plan.keep([0.5] * 8) for plan in (cheap, dear, step)] == [8, 2, 4]
