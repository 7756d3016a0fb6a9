"""The loop on models with chosen logits: the same tokens with and without speculation, in any company."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.daemon import control
from draftd.daemon.drafting import Drafted, Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.plan import Plan, Source
from draftd.daemon.request import Request
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.drafts.suffix import SuffixDraft
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling
from tests.daemon.traffic import run
from tests.fakes import TableDraft, TableTarget


def request(key: int, prompt: list[int], count: int, sampling: Sampling, **options: object) -> Request:
    return Request(
        key=key,
        tokens=list(prompt),
        prompt=len(prompt),
        end=len(prompt) + count,
        sampling=sampling,
        stop_ids=options.pop("stop_ids", frozenset()),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


def generate(engine: Engine, requests: list[Request]) -> dict[int, list[int]]:
    run(engine, *requests)
    return {each.key: each.tokens[each.prompt :] for each in requests}


def plain(prompt: list[int], count: int, sampling: Sampling, **options: object) -> list[int]:
    return generate(Engine(TableTarget()), [request(0, prompt, count, sampling, **options)])[0]


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
)


@given(
    sampling=samplings,
    length=st.integers(0, 9),
    source=st.sampled_from(["model", "suffix", "chain", "auto"]),
    quality=st.sampled_from([0, 1]),
    chunk=st.sampled_from([1, 3, 512]),
    penalties=st.builds(
        Penalties,
        repetition=st.sampled_from([1.0, 1.5]),
        presence=st.sampled_from([0.0, 0.7]),
        frequency=st.sampled_from([0.0, 0.4]),
        bias=st.sampled_from([(), ((3, -100.0), (5, 1.0))]),
    ),
    prompts=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=12), min_size=1, max_size=7),
)
@settings(max_examples=150)
def test_output_does_not_depend_on_draft_batch_or_chunks(
    sampling: Sampling,
    length: int,
    source: str,
    quality: int,
    chunk: int,
    penalties: Penalties,
    prompts: list[list[int]],
) -> None:
    drafting = Drafting(TableDraft(TableTarget(seed=quality)), SuffixDraft())
    mode = "auto" if source == "auto" else (source, length)
    requests = [
        request(key, prompt, 20, sampling, mode=mode, processors=Processors(penalties, prompt))
        for key, prompt in enumerate(prompts)
    ]
    together = generate(Engine(TableTarget(), drafting, chunk=chunk), requests)
    for each in requests:
        drafting.remember(each)
    for key, prompt in enumerate(prompts):
        assert together[key] == plain(prompt, 20, sampling, processors=Processors(penalties, prompt))


@pytest.mark.parametrize("reading", [1, 3, 12])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_draft_that_reads_only_the_end_changes_no_answer(
    reading: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "Plan", partial(Plan, reading=reading))
    model = TableTarget(vocab=8)
    prompt, sampling = [token % 8 for token in range(60)], Sampling(temperature, seed=3)
    for mode in (("model", 4), ("chain", 6)):
        engine = Engine(TableTarget(), Drafting(LlamaDraft(model), SuffixDraft()))
        one = request(0, prompt, 40, sampling, mode=mode)
        assert generate(engine, [one])[0] == plain(prompt, 40, sampling)
        assert one.tally.accepted > (10 if mode[0] == "model" else 0)
        assert len(model.held[0]) < 60, "the prompt's beginning was left out"
        model.truncate(0, 0)


def test_a_perfect_draft_is_accepted_whole() -> None:
    for temperature in (0.0, 1.5):
        engine = Engine(TableTarget(), Drafting(TableDraft(TableTarget())))
        one = request(0, [1, 2], 21, Sampling(temperature, seed=3), mode=("model", 4))
        generate(engine, [one])
        tally = one.tally
        assert tally.accepted == tally.drafted == 16
        assert tally.rounds == 1 + 4  # the prompt's pass, then four tokens and a bonus each
        assert tally.accepted_by_position == [4, 4, 4, 4]
        assert tally.drafted_by == ["none"] + 4 * ["model"]


def test_requests_share_one_pass_and_wait_for_slots() -> None:
    target = TableTarget(slots=2)
    requests = [request(key, [key, 1], 6, Sampling()) for key in range(5)]
    generate(Engine(target), requests)
    assert target.widest == 2
    assert all(len(each.tokens) == 8 for each in requests)


def test_without_speculation_nothing_is_drafted() -> None:
    one = request(0, [1, 2], 10, Sampling(), mode="off")
    generate(Engine(TableTarget(), Drafting(TableDraft(TableTarget()), SuffixDraft())), [one])
    assert (one.tally.drafted, one.tally.rounds) == (0, 10)


@pytest.mark.parametrize("length", [0, 3, 8])
def test_a_stop_token_inside_an_accepted_block_ends_the_answer_there(length: int) -> None:
    sampling = Sampling(1.0, seed=11)
    tokens = plain([1, 2], 30, sampling)
    stop = tokens[12]
    expected = tokens[: tokens.index(stop)]
    engine = Engine(TableTarget(), Drafting(TableDraft(TableTarget())))
    one = request(0, [1, 2], 30, sampling, stop_ids=frozenset({stop}), mode=("model", length))
    engine.add(one)
    finish = None
    while engine.busy:
        for emission in engine.step():
            finish = emission.finish
    assert one.tokens[2:] == expected
    assert finish == "stop"


@pytest.mark.parametrize("source", ["model", "suffix", "chain"])
def test_nothing_is_drafted_behind_a_token_that_would_end_the_answer(source: Source) -> None:
    sampling = Sampling(1.0, seed=11)
    tokens = plain([1, 2], 60, sampling)
    stop = tokens[12]
    length = tokens.index(stop) + 1
    drafting = Drafting(TableDraft(TableTarget()), SuffixDraft())
    earlier = request(0, [1, 2], 60, sampling, scope="app")
    generate(Engine(TableTarget(), drafting), [earlier])
    drafting.remember(earlier)
    one = request(1, [1, 2], 60, sampling, stop_ids=frozenset({stop}), mode=(source, 32), scope="app")
    generate(Engine(TableTarget(), drafting), [one])
    assert one.tokens[2:] == tokens[: length - 1]
    assert 0 < one.tally.drafted < length  # the first token is the prompt's


@pytest.mark.parametrize("stopped", [False, True])
def test_the_controller_learns_how_long_answers_are(stopped: bool) -> None:
    tokens = plain([1, 2], 30, Sampling(1.0, seed=11))
    stop = frozenset({tokens[12]}) if stopped else frozenset[int]()
    engine = Engine(TableTarget(), Drafting(TableDraft(TableTarget())))
    before = engine.drafting.controller.answer()
    one = request(0, [1, 2], 30, Sampling(1.0, seed=11), stop_ids=stop, mode="auto")
    generate(engine, [one])
    assert (engine.drafting.controller.answer() < before) == stopped


def test_a_request_sent_again_continues_with_the_same_tokens() -> None:
    sampling = Sampling(1.0, seed=5)
    whole = plain([3, 4], 24, sampling)
    for cut in (1, 7, 23):
        again = request(0, [3, 4], 24, sampling)
        again.tokens += whole[:cut]
        generate(Engine(TableTarget(), Drafting(TableDraft(TableTarget(seed=1)))), [again])
        assert again.tokens[2:] == whole


def test_a_slot_is_reused_from_the_common_prefix_and_only_when_asked() -> None:
    target, draft = TableTarget(slots=2), TableDraft(TableTarget())
    engine = Engine(target, Drafting(draft))
    first = request(0, [1, 2, 3, 4], 6, Sampling())
    generate(engine, [first])
    follow_up = [*first.tokens, 5, 6]
    fed = target.fed
    second = request(1, follow_up, 1, Sampling())
    assert generate(engine, [second])[1] == plain(follow_up, 1, Sampling())
    assert second.reused == len(first.tokens) - 1  # its last token was never fed
    assert target.fed - fed == len(follow_up) - second.reused
    fresh = request(2, follow_up, 1, Sampling(), reuse=False)
    generate(engine, [fresh])
    assert fresh.reused == 0
    assert draft.forgotten == [fresh.slot]


def test_removing_a_running_request_frees_its_slot() -> None:
    target = TableTarget(slots=1)
    engine = Engine(target)
    endless, next_one = request(0, [1], 200, Sampling()), request(1, [2], 3, Sampling())
    engine.add(endless)
    engine.step()
    engine.step()
    engine.remove(endless)
    assert generate(engine, [next_one])[1] == plain([2], 3, Sampling())


def test_a_long_prompt_does_not_stall_a_generating_request() -> None:
    target = TableTarget(context=1000)
    engine = Engine(target)
    short, long = request(0, [1], 50, Sampling()), request(1, [2] * 640, 3, Sampling())
    engine.add(short)
    engine.step()
    engine.add(long)
    for _ in range(9):
        engine.step()
    assert len(short.tokens) == 11
    assert len(long.tokens) == 640, "ten chunks of 64: not done yet"


def test_a_drafted_tokens_row_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    row = TableTarget().row([5, 1])
    for verify in ("coupled", "rejection"):
        one = request(0, [5, 1], 9, Sampling(0.8, top_k=3, top_p=0.9), verify=verify)
        context = Drafting()._context(one, Drafted(Plan("model", 4)))
        with monkeypatch.context() as patched:
            patched.delattr("draftd.models.sampling.tops_of")  # what `pick` has looked for serves all
            token, confidence = context.choose(row.copy(), 2)
        assert token in row.argsort()[-3:]
        assert 0.0 < confidence < 1.0


def test_the_controller_learns_that_a_bad_draft_does_not_pay() -> None:
    drafting = Drafting(TableDraft(TableTarget(seed=9)))
    for key in range(6):
        one = request(key, [1, key], 200, Sampling(0.0))
        generate(Engine(TableTarget(), drafting), [one])
    assert one.control is not None
    assert one.control.rounds["none"] > 0.8 * one.tally.rounds


def test_rows_that_are_padded_count_as_rows_of_their_pass() -> None:
    target = TableTarget()
    target.padded = True
    drafting = Drafting(TableDraft(TableTarget()))
    seen = []
    drafting.controller.took = lambda rows, seconds: seen.append(rows)  # type: ignore[method-assign]
    modes: list[control.Mode] = [("model", 3), "off"]
    generate(
        Engine(target, drafting),
        [request(key, [1, 2], 40, Sampling(), mode=mode) for key, mode in enumerate(modes)],
    )
    assert 8 in seen  # of four and one
    assert 5 not in seen


@pytest.mark.parametrize("even", [False, True])
def test_what_several_passes_took_teaches_nothing_about_one(even: bool) -> None:
    target = TableTarget()
    target.even = even
    drafting = Drafting(TableDraft(TableTarget()))
    seen = []
    drafting.controller.took = lambda rows, seconds: seen.append(rows)  # type: ignore[method-assign]
    for length, passes in ((3, {8} if even else {5}), (5, set() if even else {7})):  # of four, of six and one
        seen.clear()
        modes: list[control.Mode] = [("model", length), "off"]
        generate(
            Engine(target, drafting),
            [request(key, [1, 2], 40, Sampling(), mode=mode) for key, mode in enumerate(modes)],
        )
        assert {5, 7, 8} & set(seen) == passes
        assert 1 in seen  # the other alone, behind the end of the first
    seen.clear()
    ends = [40, 4, 40]  # the middle one leaves a gap between the slots of the others, which close up
    generate(
        Engine(target, drafting),
        [request(key, [1, 2], end, Sampling(), mode="off") for key, end in enumerate(ends)],
    )
    assert 3 in seen
    assert 2 in seen
