"""Who runs and who yields, on models with chosen logits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Priority, Request
from draftd.daemon.scheduler import BACKGROUND_CHUNK, PREFILL_CHUNK
from draftd.drafts.llama_cpp import LlamaDraft
from tests.daemon.traffic import BACKGROUND, alone, prefill, request, run, text
from tests.fakes import TableDraft, TableTarget


def test_an_interactive_request_preempts_within_one_round_and_the_other_goes_on_unchanged() -> None:
    target = TableTarget(slots=1)
    engine = Engine(target)
    background = request(0, text(40), 30, priority=BACKGROUND)
    engine.add(background)
    for _ in range(10):
        engine.step()
    urgent = request(1, text(30, 1), 5)
    engine.add(urgent)
    engine.step()
    assert len(urgent.tokens) == 31, "its first token comes out of the very next round"
    begun, fed = list(background.tokens), target.fed
    run(engine)
    assert background.tokens[: len(begun)] == begun
    assert background.tokens == alone(0, text(40), 30)
    assert urgent.tokens == alone(1, text(30, 1), 5)
    assert target.loaded == len(begun) - 1
    assert target.fed - fed == 4 + (70 - len(begun)), "a token a round each: nothing is computed again"


def test_a_request_in_the_middle_of_its_prompt_can_be_preempted() -> None:
    target = TableTarget(slots=1, context=2000)
    engine = Engine(target)
    background = request(0, text(5 * BACKGROUND_CHUNK), 4, priority=BACKGROUND)
    engine.add(background)
    engine.step()
    engine.step()
    run(engine, request(1, text(9, 1)))
    assert background.tokens == alone(0, text(5 * BACKGROUND_CHUNK), 4)
    assert target.loaded == 2 * BACKGROUND_CHUNK


def test_equals_do_not_preempt_and_the_newest_of_the_lesser_yields() -> None:
    engine = Engine(TableTarget(slots=2))
    old, new = (request(key, text(20, key), 60, priority=BACKGROUND) for key in range(2))
    engine.add(old)
    engine.step()
    engine.add(new)
    engine.step()
    engine.add(request(2, text(20, 2), priority=BACKGROUND))
    engine.step()
    assert set(engine.scheduler.running) == {old, new}
    first, second = request(3, text(20, 3), 60), request(4, text(20, 4), 60)
    engine.add(first)
    engine.step()
    assert set(engine.scheduler.running) == {old, first}
    engine.add(second)
    engine.add(request(5, text(20, 5)))
    engine.step()
    assert set(engine.scheduler.running) == {first, second}
    assert engine.scheduler.waiting[:2] == [old, new], "in the order they came"


def test_a_client_with_many_requests_does_not_make_another_wait_for_all_of_them() -> None:
    engine = Engine(TableTarget(slots=2))
    flood = [request(key, text(20, key), 10, client="one") for key in range(10)]
    for each in flood:
        engine.add(each)
    engine.step()
    other = request(10, text(20, 10), 4, client="other")
    engine.add(other)
    while len(other.tokens) < 24:
        engine.step()
    assert sum(len(each.tokens) > 20 for each in flood) == 3
    run(engine)


def test_a_cancelled_request_that_was_preempted_is_gone() -> None:
    engine = Engine(TableTarget(slots=1))
    background = request(0, text(20), 30, priority=BACKGROUND)
    engine.add(background)
    engine.step()
    engine.add(request(1, text(20, 1)))
    engine.step()
    engine.remove(background)
    run(engine)
    assert len(background.tokens) == 21


def test_after_a_prefill_only_the_last_token_is_fed() -> None:
    target, draft = TableTarget(context=2000), TableDraft(TableTarget())
    engine = Engine(target, Drafting(draft))
    prompt = text(300)
    ahead = prefill(0, prompt)
    engine.add(ahead)
    ended = []
    while engine.busy:
        ended += [(each.request, each.finish, each.tokens) for each in engine.step()]
    assert ended == [(ahead, "prefilled", [])]
    assert target.fed == ahead.cached == draft.prepared[ahead.slot] == 300
    asked = request(1, prompt, 1)
    engine.add(asked)
    engine.step()
    assert (target.fed, asked.reused) == (301, 299)
    assert asked.tokens == alone(1, prompt, 1)
    run(engine, again := prefill(2, prompt))
    assert (target.fed, again.cached, again.reused) == (301, 300, 300)


def test_what_is_typed_further_is_all_that_is_computed() -> None:
    target = TableTarget(context=2000)
    engine = Engine(target)
    typed, marks = text(200), [7, 6, 7]
    for end in (100, 150, 200):
        before = target.fed
        run(engine, prefill(end, typed[:end] + marks))
        assert target.fed - before <= (103 if end == 100 else 53)
    assert sum(map(bool, target.held)) == 1, "each goes on in the slot of the last"
    run(engine, asked := request(0, typed + marks))
    assert asked.reused == 202


def test_a_prefill_yields_to_every_request() -> None:
    engine = Engine(TableTarget(slots=2, context=2000))
    ahead = prefill(0, text(1000))
    engine.add(ahead)
    engine.step()
    assert ahead.cached == PREFILL_CHUNK
    others = [request(1, text(40, 1), 3, priority=BACKGROUND), request(2, text(40, 2), 30)]
    for each in others:
        engine.add(each)
    engine.step()
    assert set(engine.scheduler.running) == set(others), "it even gives its slot"
    while len(others[1].tokens) < 70:
        engine.step()
    assert ahead.cached <= PREFILL_CHUNK
    run(engine)
    assert ahead.cached == 1000


def test_a_request_takes_over_the_prefill_that_was_made_for_it() -> None:
    target = TableTarget(slots=2, context=2000)
    engine = Engine(target)
    prompt = text(400)
    ahead = prefill(0, [*prompt[:390], 1, 2, 3])
    engine.add(ahead)
    engine.step()
    asked = request(1, prompt)
    engine.add(asked)
    emissions = engine.step()
    assert [(each.request, each.finish) for each in emissions if not each.tokens] == [(ahead, "prefilled")]
    assert ahead.cached < len(ahead.tokens)
    assert (asked.reused, asked.slot, target.copied) == (PREFILL_CHUNK, ahead.slot, 0)
    run(engine)
    assert asked.tokens == alone(1, prompt)


def test_a_prefill_that_ended_in_a_round_that_failed_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine(TableTarget(slots=2, context=2000))
    ahead, asked = prefill(0, text(400)), request(1, text(400))
    engine.add(ahead)
    engine.step()

    def fail(request: Request) -> None:
        raise ZeroDivisionError

    engine.add(asked)
    with monkeypatch.context() as patched:
        patched.setattr(engine.scheduler.places, "take", fail)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    for each in (asked, ahead):
        engine.remove(each)
    assert not engine.busy
    assert engine.step() == []


def test_prefills_take_turns() -> None:
    engine = Engine(TableTarget(context=2000))
    long, short = prefill(0, text(1500)), prefill(1, text(100, 1))
    engine.add(long)
    engine.add(short)
    engine.step()
    engine.step()
    assert (long.cached, short.cached) == (PREFILL_CHUNK, PREFILL_CHUNK)


@given(st.data())
@hypothesis_settings(max_examples=60)
def test_any_traffic_gives_each_request_its_undisturbed_answer(data: st.DataObject) -> None:
    """Priorities, prefills, shared prefixes, drafts and cancellations in any order, on one to four slots."""
    slots = data.draw(st.integers(1, 4))
    target = TableTarget(slots=slots, context=400)
    target.even = data.draw(st.booleans())
    engine = Engine(target, Drafting(LlamaDraft(TableTarget(slots=slots, seed=1, context=500))), chunk=32)
    stem = text(60)
    live: list[Request] = []
    finished: list[Request] = []
    for key in range(data.draw(st.integers(1, 12))):
        prompt = stem[: data.draw(st.sampled_from([1, 30, 60]))] + text(data.draw(st.integers(0, 40)), key)
        match data.draw(st.sampled_from(["interactive", "background", "prefill", "cancel"])):
            case "prefill":
                one = prefill(key, prompt)
            case "cancel" if live:
                engine.remove(live.pop(0))
                continue
            case kind:
                priority = BACKGROUND if kind == "background" else Priority.INTERACTIVE
                one = request(key, prompt, 12, priority=priority, mode=("model", 3), client=str(key % 2))
        engine.add(one)
        live.append(one)
        for _ in range(data.draw(st.integers(0, 8))):
            for emission in engine.step():
                if emission.finish is not None and emission.request in live:
                    live.remove(emission.request)
                    finished.append(emission.request)
    run(engine)
    assert len(engine.scheduler.places.free) == slots
    for each in finished + live:
        if not each.cache_only:
            assert each.tokens == alone(each.key, each.tokens[: each.prompt], 12)
