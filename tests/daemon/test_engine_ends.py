"""Where an answer under a grammar ends if no token is its end, or none can follow: with drafts as without."""

from __future__ import annotations

import pytest

from draftd.daemon.control import Mode
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Emission, Engine
from draftd.daemon.request import Request, Verify
from draftd.ipc.errors import InvalidRequest
from draftd.models.grammar import Grammars, Kind
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling
from tests.daemon.test_engine import request
from tests.daemon.test_engine_law import letters
from tests.fakes import TableDraft, TableTarget

VOCAB = 3  # "a", "b", and the end, which is a token like the others where it is ignored
GRAMMARS: list[tuple[Kind, str]] = [
    ("regex", "ab"),
    ("regex", "a*"),
    ("regex", "[ab]{2,4}"),
    ("lark", 'start: body "b"\nbody[max_tokens=2]: /a*/'),  # takes no token back
]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(letters(VOCAB), VOCAB)


def ask(
    grammars: Grammars, grammar: tuple[Kind, str], seed: int, mode: Mode, verify: Verify = "coupled"
) -> Request:
    """An answer of up to 20 tokens, and its books, which are what was told of it."""
    processors = Processors(Penalties(), [], grammars.matcher(*grammar))
    options = {"processors": processors, "mode": mode, "verify": verify}
    one = request(0, [0, 1], 20, Sampling(1.0, seed=seed), **options)
    draft = TableTarget(VOCAB, seed=0 if verify == "coupled" else 1)  # with dice, one that is refused, too
    engine = Engine(TableTarget(VOCAB), Drafting(TableDraft(draft)))
    engine.add(one)
    emissions = []
    while engine.busy:
        emissions += engine.step()
    assert [token for each in emissions for token in each.tokens] == one.tokens[2:]
    assert sum(sum(each.drafted) for each in emissions) == one.tally.accepted
    assert emissions[-1].finish == "stop" or len(one.tokens) == one.end
    return one


@pytest.mark.parametrize("grammar", GRAMMARS, ids=str)
@pytest.mark.parametrize("length", [1, 3, 8])
def test_a_drafted_answer_ends_with_its_grammar_where_a_plain_one_does(
    grammars: Grammars, grammar: tuple[Kind, str], length: int
) -> None:
    drafted = 0
    for seed in range(20):
        one = ask(grammars, grammar, seed, ("model", length))
        assert one.tokens == ask(grammars, grammar, seed, "off").tokens
        drafted += one.tally.drafted
    assert drafted > 0


@pytest.mark.parametrize("grammar", GRAMMARS, ids=str)
@pytest.mark.parametrize("verify", ["rejection", "rejection-token"])
def test_dice_give_what_the_grammar_admits_and_nothing_behind_it(
    grammars: Grammars, grammar: tuple[Kind, str], verify: Verify
) -> None:
    for seed in range(20):
        said = ask(grammars, grammar, seed, ("model", 3), verify).tokens[2:]
        text = [token for token in said if token < VOCAB - 1]
        assert grammars.matcher(*grammar).fitting(text) == len(text)
        assert said in (text, [*text, VOCAB - 1])


def test_nothing_is_drafted_behind_a_grammars_end(grammars: Grammars) -> None:
    one = ask(grammars, ("regex", "ab"), 0, ("model", 8))
    assert one.tokens == [0, 1, 0, 1]
    assert one.tally.drafted == 1


@pytest.mark.parametrize("mode", ["off", ("model", 3)], ids=str)
@pytest.mark.parametrize("verify", ["coupled", "rejection", "rejection-token"])
def test_a_grammar_that_no_token_can_follow_ends_its_request_with_an_error_and_no_other(
    grammars: Grammars, mode: Mode, verify: Verify
) -> None:
    def mate() -> Request:
        return request(1, [1, 0], 20, Sampling(1.0, seed=2), mode="off")

    engine = Engine(TableTarget(VOCAB), Drafting(TableDraft(TableTarget(VOCAB, seed=1))))
    processors = Processors(Penalties(), [], grammars.matcher("regex", "a[cd]"))  # no token is one of these
    stuck = request(0, [0, 1], 20, Sampling(1.0), processors=processors, mode=mode, verify=verify)
    other, alone = mate(), mate()
    ends = finished(engine, stuck, other)
    assert [(each.request, each.finish) for each in ends] == [(stuck, "error"), (other, "length")]
    assert isinstance(ends[0].error, InvalidRequest)
    assert "the answer can't go on behind 1 tokens" in str(ends[0].error)
    assert stuck.tokens == [0, 1, 0]
    finished(Engine(TableTarget(VOCAB)), alone)
    assert other.tokens == alone.tokens
    assert len(engine.scheduler.places.free) == 4


@pytest.mark.parametrize("stops", [frozenset({1}), frozenset()], ids=["and is the end", "and is not"])
@pytest.mark.parametrize("verify", ["coupled", "rejection", "rejection-token"])
def test_what_stands_before_a_dead_end_is_said_with_drafts_as_without(
    grammars: Grammars, stops: frozenset[int], verify: Verify
) -> None:
    found = []
    for mode in ("off", ("model", 4)):
        processors = Processors(Penalties(), [], grammars.matcher("regex", "aab[cd]"))
        options = {"processors": processors, "mode": mode, "verify": verify}
        one = request(0, [0, 1], 20, Sampling(1.0), stop_ids=stops, **options)
        (end,) = finished(Engine(TableTarget(VOCAB), Drafting(TableDraft(TableTarget(VOCAB)))), one)
        found.append((one.tokens, end.finish))
        assert one.tally.accepted == (0 if mode == "off" else 2)
    assert found[0] == found[1] == (([0, 1, 0, 0], "stop") if stops else ([0, 1, 0, 0, 1], "error"))


def finished(engine: Engine, *requests: Request) -> list[Emission]:
    """What ended them."""
    for each in requests:
        engine.add(each)
    ends = []
    while engine.busy:
        ends += [emission for emission in engine.step() if emission.finish is not None]
    return ends
