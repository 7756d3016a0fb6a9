"""Earlier answers as drafts: for the app that had them, and for no other."""

from __future__ import annotations

from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.drafts.suffix import SCOPES, SuffixDraft
from draftd.models.sampling import Sampling
from tests.daemon.test_engine import generate, request
from tests.fakes import TableTarget


def test_a_repeated_request_replays_its_answer_in_few_passes() -> None:
    target = TableTarget()
    drafting = Drafting(suffix=SuffixDraft())
    passes = []
    for key in range(2):
        one = request(key, [5, 1, 2], 60, Sampling(1.0, seed=2), mode=("suffix", 32), scope="app")
        before = target.passes
        generate(Engine(target, drafting), [one])
        drafting.remember(one)
        passes.append(target.passes - before)
    assert passes[1] <= 5 < passes[0]


def test_without_a_history_only_a_requests_own_text_drafts() -> None:
    drafting = Drafting(suffix=SuffixDraft(), remembers=False)
    rounds = []
    for key in range(2):
        one = request(key, [5, 1, 2], 60, Sampling(1.0, seed=2), mode=("suffix", 32), scope="app")
        generate(Engine(TableTarget(), drafting), [one])
        drafting.remember(one)
        rounds.append(one.tally.rounds)
        assert one.tally.drafted > 0
    assert rounds[0] == rounds[1]


def test_one_apps_answers_are_never_drafted_for_another_nor_where_nothing_is_reused() -> None:
    drafting = Drafting(suffix=SuffixDraft())
    first = request(0, [5, 1, 2], 60, Sampling(1.0, seed=2), mode=("suffix", 32), scope="app")
    generate(Engine(TableTarget(), drafting), [first])
    drafting.remember(first)
    drafting.remember(request(3, first.tokens[:3], 60, Sampling(), scope=""))
    for options in ({"scope": "other"}, {"scope": ""}, {"scope": "app", "reuse": False}):
        again = request(1, [5, 1, 2], 60, Sampling(1.0, seed=2), mode=("suffix", 32), **options)
        generate(Engine(TableTarget(), drafting), [again])
        assert again.tally.rounds == first.tally.rounds


def test_requests_that_share_nothing_push_no_apps_history_out() -> None:
    drafting = Drafting(suffix=SuffixDraft())
    sampling, mode = Sampling(1.0, seed=2), ("suffix", 32)
    first, again = (request(key, [5, 1, 2], 60, sampling, mode=mode, scope="app") for key in range(2))
    generate(Engine(TableTarget(), drafting), [first])
    drafting.remember(first)
    for key in range(2, SCOPES + 2):
        generate(Engine(TableTarget(), drafting), [request(key, [1, 2, 3], 3, sampling, mode=mode)])
    generate(Engine(TableTarget(), drafting), [again])
    assert again.tally.rounds <= 5 < first.tally.rounds
