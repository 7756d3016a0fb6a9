"""What the engine gives up on each rung and takes up again, on models with chosen logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.governor import Rung
from draftd.daemon.loader import Loaded
from draftd.daemon.retreat import SHORT, Retreat
from draftd.drafts.by_tokens import TokenDraft
from draftd.ipc.errors import UnsupportedModel
from draftd.models.sampling import Sampling
from tests.daemon.test_engine import generate, plain, request
from tests.fakes import TableDraft, TableTarget


class Target(TableTarget):
    def __init__(self) -> None:
        super().__init__()
        self.dropped: list[int] = []
        self.threads = 0

    def drop(self, slots: Sequence[int]) -> None:
        super().drop(slots)
        self.dropped = list(slots)

    def set_threads(self, count: int) -> None:
        self.threads = count


class Draft(TableDraft):
    def __init__(self) -> None:
        super().__init__(TableTarget())
        self.closed = False
        self.longest = 0
        self.threads = 0

    def propose(self, contexts: Sequence[Any]) -> list[Any]:
        assert not self.closed
        self.longest = max(context.limit for context in contexts)
        return super().propose(contexts)

    def set_threads(self, count: int) -> None:
        self.threads = count

    def close(self) -> None:
        self.closed = True


def made(open_draft: Any) -> tuple[Retreat, Target]:
    target = Target()
    drafting = Drafting(open_draft())
    loaded = Loaded(target, cast(Any, None), drafting, Path(), {}, open_draft)
    return Retreat(loaded, Engine(target, drafting)), target


def test_answers_stay_what_they_were_on_every_rung_down_and_up() -> None:
    retreat, _ = made(Draft)
    sampling = Sampling(temperature=0.9, seed=3)
    asked = request(1, [1, 2, 3], 60, sampling, mode=("model", 9))
    retreat.engine.add(asked)
    for rung in [*Rung, *reversed(Rung)]:
        retreat.to(rung)
        for _ in range(2):
            retreat.engine.step()
    generate(retreat.engine, [])
    assert asked.tokens[3:] == plain([1, 2, 3], 60, sampling)


def test_drafts_are_short_on_the_first_rung_only() -> None:
    retreat, _ = made(Draft)
    draft = cast(Draft, retreat.loaded.drafting.model)
    ask = {"count": 40, "sampling": Sampling(), "mode": ("model", 9)}
    lengths = []
    for rung in (Rung.NORMAL, Rung.SHORT_DRAFTS, Rung.NORMAL):
        retreat.to(rung)
        retreat.engine.add(request(1, [1, 2], **cast(Any, ask)))
        retreat.engine.step()
        retreat.engine.step()
        lengths.append(draft.longest)
        generate(retreat.engine, [])
    assert lengths == [9, SHORT, 9]


def test_the_draft_is_closed_and_opened_again() -> None:
    opened: list[Draft] = []

    def open_draft() -> Draft:
        opened.append(Draft())
        return opened[-1]

    retreat, _ = made(open_draft)
    retreat.to(Rung.NO_DRAFT)
    assert opened[0].closed
    assert "model" not in retreat.loaded.drafting.controller.sources
    retreat.to(Rung.REFUSE)
    retreat.to(Rung.DROP_CACHES)
    assert len(opened) == 2
    assert retreat.loaded.drafting.model is opened[1]
    assert "model" in retreat.loaded.drafting.controller.sources


def test_a_draft_that_can_no_longer_be_opened_leaves_the_target_alone() -> None:
    drafts = iter([Draft()])

    def open_draft() -> Draft:
        for draft in drafts:
            return draft
        raise UnsupportedModel("there is too little memory")

    retreat, _ = made(open_draft)
    retreat.to(Rung.NO_DRAFT)
    retreat.to(Rung.NORMAL)
    assert retreat.loaded.drafting.model is None
    assert len(generate(retreat.engine, [request(1, [1], 5, Sampling())])[1]) == 5


class Same:
    """A vocabulary of which nothing, or all but one token, was left out."""

    def __init__(self, lacks: int | None = None) -> None:
        self.lacks = lacks

    def row(self, row: Any) -> Any:
        return row

    def draft_id(self, token: int) -> int | None:
        return None if token == self.lacks else token

    def draft_ids(self, tokens: Sequence[int]) -> list[int]:
        return list(tokens)


def test_a_draft_that_lacks_much_of_what_the_target_says_gives_way_to_the_whole_one() -> None:
    first, whole = Draft(), Draft()
    opened = iter([cast(Any, whole)])
    retreat, _ = made(lambda: TokenDraft(first, Same(lacks=5)))
    retreat.loaded = replace(retreat.loaded, whole_draft=lambda: next(opened))
    retreat.set_threads(3)
    model = retreat.loaded.drafting.model
    assert model is not None
    for token in (1, 5):
        assert not retreat.incomplete
        for _ in range(100):
            model.unseen(0, [1, token])
    assert retreat.incomplete
    retreat.complete()
    assert first.closed
    assert cast(Any, retreat.loaded.drafting.model) is whole
    assert whole.threads == 3
    assert not retreat.incomplete
    sampling = Sampling(temperature=0.9, seed=3)
    asked = request(1, [1, 2, 3], 30, sampling, mode=("model", 4))
    generate(retreat.engine, [asked])
    assert asked.tokens[3:] == plain([1, 2, 3], 30, sampling)


def test_it_is_tried_once_and_only_where_there_is_a_whole_one() -> None:
    retreat, _ = made(lambda: TokenDraft(Draft(), Same(lacks=5)))
    model = cast(Any, retreat.loaded.drafting.model)
    model.lacking = True
    retreat.complete()
    assert retreat.loaded.drafting.model is model, "its own vocabulary is another one"
    assert not retreat.incomplete


def test_idle_slots_are_dropped_and_those_that_run_are_not() -> None:
    retreat, target = made(Draft)
    generate(retreat.engine, [request(1, [1, 2, 3], 5, Sampling())])
    running = request(2, [4, 5, 6], 30, Sampling())
    retreat.engine.add(running)
    retreat.engine.step()
    retreat.to(Rung.DROP_CACHES)
    assert sorted(target.dropped) == [slot for slot in range(4) if slot != running.slot]
    generate(retreat.engine, [])
    retreat.tidy()
    assert sorted(target.dropped) == [0, 1, 2, 3]
    again = request(3, [4, 5, 6], 5, Sampling())
    generate(retreat.engine, [again])
    assert again.reused == 0


def test_threads_are_set_on_both_models() -> None:
    retreat, target = made(Draft)
    retreat.set_threads(3)
    assert target.threads == cast(Draft, retreat.loaded.drafting.model).threads == 3


def test_a_draft_that_is_opened_again_has_the_targets_threads() -> None:
    retreat, target = made(Draft)
    retreat.to(Rung.NO_DRAFT)
    retreat.set_threads(3)
    retreat.to(Rung.NORMAL)
    assert target.threads == cast(Draft, retreat.loaded.drafting.model).threads == 3
