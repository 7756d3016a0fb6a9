"""What slots hold and who goes on with it, on models with chosen logits."""

from __future__ import annotations

import pytest

from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.places import CONFINED
from draftd.drafts.llama_cpp import LlamaDraft
from tests.daemon.traffic import BACKGROUND, alone, request, run, text
from tests.fakes import TableDraft, TableTarget


def test_a_prefix_is_copied_where_the_slot_must_keep_its_own() -> None:
    target = TableTarget(slots=2)
    draft = TableDraft(TableTarget())
    engine = Engine(target, Drafting(draft))
    system = text(50)
    first = request(0, system + text(10, 1), 100)
    engine.add(first)
    engine.step()
    second = request(1, system + text(10, 2))
    engine.add(second)
    engine.step()
    assert (second.reused, target.copied, draft.copied) == (50, 50, [(first.slot, second.slot, 50)])
    run(engine)
    assert first.tokens == alone(0, system + text(10, 1), 100)
    assert second.tokens == alone(1, system + text(10, 2))


def test_an_ended_conversation_is_kept_as_long_as_there_is_room() -> None:
    target = TableTarget(slots=3)
    engine = Engine(target)
    system = text(50)
    chats = [request(key, system + text(10, key + 1), 20) for key in range(2)]
    for each in chats:
        run(engine, each)
    assert chats[1].reused == 50
    for each in chats:
        follow = request(9, [*each.tokens, 1, 2, 3])
        run(engine, follow)
        assert follow.reused == len(each.tokens) - 1


def test_the_slot_whose_loss_is_least_is_overwritten() -> None:
    engine = Engine(TableTarget(slots=3, context=400))
    long, short, newest = request(0, text(150)), request(1, text(30, 1)), request(2, text(150, 2))
    run(engine, long, short, newest)
    run(engine, other := request(3, text(60, 3)))
    assert other.slot == short.slot
    for key in range(4, 40):  # a conversation goes on and on: the one nobody returns to makes room at last
        run(engine, request(key, text(160, 2)))
        run(engine, request(key, text(60, 3)))
    run(engine, other := request(40, text(60, 4)))
    assert other.slot == long.slot


def test_what_only_another_owner_has_too_is_a_loss() -> None:
    engine = Engine(TableTarget(slots=3))
    one, two = (request(key, text(200), cache_owner=str(key)) for key in range(2))
    run(engine, one)
    run(engine, two)
    run(engine, short := request(2, text(30, 2), cache_owner="2"))
    run(engine, other := request(3, text(60, 3), cache_owner="3"))
    assert other.slot == short.slot


def test_what_nobody_may_start_from_is_overwritten_first() -> None:
    engine = Engine(TableTarget(slots=2))
    run(engine, confined := request(0, text(200), cache_owner=f"{CONFINED}0"))
    run(engine, request(1, text(30, 1)))
    run(engine, other := request(2, text(60, 2)))
    assert other.slot == confined.slot


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    target = TableTarget(slots=4)
    prompt = text(100)
    answers = [request(key, prompt) for key in range(4)]
    run(Engine(target), *answers)
    assert target.fed == 100 + 3 + 4 * 5
    assert target.copied == 3 * 100
    for key, each in enumerate(answers):
        assert each.tokens == alone(key, prompt)


def test_a_request_with_little_in_common_does_not_wait() -> None:
    target = TableTarget(slots=2)
    engine = Engine(target)
    for key in range(2):
        engine.add(request(key, text(20) + text(100, key)))
    engine.step()
    assert target.widest == 2


def test_confined_caches_are_not_shared() -> None:
    target = TableTarget()
    engine = Engine(target)
    prompt = text(100)
    run(engine, request(0, prompt, cache_owner="one"))
    run(engine, other := request(1, prompt, cache_owner="two"))
    run(engine, again := request(2, prompt, cache_owner="one"))
    run(engine, fresh := request(3, prompt, cache_owner="one", reuse=False))
    assert [other.reused, again.reused, fresh.reused] == [0, 99, 0]


def test_a_draft_starts_from_nothing_that_its_target_may_not_start_from() -> None:
    model = TableTarget(slots=1, seed=1, context=300)
    engine = Engine(TableTarget(slots=1), Drafting(LlamaDraft(model)))
    prompt, read = text(100), []
    for key, owner in enumerate((f"{CONFINED}0", "one", "two", "two")):
        before = model.fed
        run(engine, request(key, prompt, cache_owner=owner, mode=("model", 2)))
        read.append(model.fed - before)
    assert [count > 100 for count in read] == [True, True, True, False]


def test_a_parked_cache_that_is_refused_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    target = TableTarget(slots=1)
    engine = Engine(target)
    background = request(0, text(40), 20, priority=BACKGROUND)
    engine.add(background)
    engine.step()
    engine.add(request(1, text(30, 1)))

    def refuse(*_: object) -> None:
        raise ValueError("not mine")

    monkeypatch.setattr(target, "load_slot", refuse)
    run(engine)
    assert background.refused == "not mine"
    assert background.tokens == alone(0, text(40), 20)


def test_an_answer_that_was_cut_behind_its_end_has_a_cache_still() -> None:
    engine = Engine(TableTarget(), Drafting(TableDraft(TableTarget())))
    run(engine, one := request(0, text(30), 10, mode=("model", 4)))
    del one.tokens[-3:]  # by the worker, which finds a stop string in the tokens that reached the limit, too
    cache = engine.cache(one)
    assert cache is not None
    assert cache.tokens == one.tokens


def test_what_runs_closes_up_where_only_neighbours_are_computed_together() -> None:
    target = TableTarget(slots=4, context=200)
    target.even = True
    drafting = Drafting(LlamaDraft(TableTarget(slots=4, seed=1, context=300)))
    rounds: list[list[int]] = []
    engine = Engine(
        target, drafting, beat=lambda _, __, batch: rounds.append([work.request.slot for work in batch])
    )
    counts = dict(enumerate((20, 4, 20)))
    answers = [request(key, text(30, key), count) for key, count in counts.items()]
    run(engine, *answers)
    assert {len(slots) for slots in rounds} == {3, 2, 1}
    assert all(max(slots) - min(slots) < len(slots) for slots in rounds)
    assert target.loaded > 0, "whoever was left beside the gap has moved"
    assert [each.tokens for each in answers] == [alone(key, text(30, key), counts[key]) for key in counts]


def test_nobody_moves_for_fewer_passes_than_that_takes() -> None:
    target = TableTarget(slots=4, context=2000)
    target.even = True
    run(Engine(target), *(request(key, text(1000, key), count) for key, count in enumerate((8, 4, 8))))
    assert target.loaded == 0
