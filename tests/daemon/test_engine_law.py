"""The whole engine in rejection mode: its answers have the target's law, enumerated and by a chi-square."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from draftd.daemon import drafting as drafting_module
from draftd.daemon import engine as engine_module
from draftd.daemon.control import Mode
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request, Verify
from draftd.drafts.base import Context, Proposal
from draftd.drafts.suffix import SuffixDraft
from draftd.models.grammar import Grammars
from draftd.models.processors import Penalties, Processors
from draftd.models.rejection import Dice, Law, law_of
from draftd.models.sampling import Sampling
from tests.enumeration import EXACT, Tokens, outcomes, total_variation
from tests.fakes import TableDraft, TableTarget

HOWS: tuple[Verify, ...] = ("rejection", "rejection-token")
MODES: tuple[Mode, ...] = (("model", 3), ("suffix", 3), ("chain", 3), "auto")
PROMPT = [0, 1, 2, 0, 1, 2, 0, 1]  # goes on for the suffix
WAITING = 64  # samples asked for at a time: whose turn it is costs the more the more wait


class Clock:
    """Time that passes by a millisecond a look, so that what the controller plans can be repeated."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


@dataclass
class Question:
    """What is asked of a table model, and the answers it should give how often."""

    vocab: int = 3
    count: int = 4
    sampling: Sampling = field(default_factory=lambda: Sampling(1.0))
    penalties: Penalties = field(default_factory=Penalties)
    regex: str | None = None  # over "a", "b", …; the last token is the end
    ends: bool = False  # it is without a regex, too
    ignored: bool = False  # with one it is not, but a token like the others
    prompt: Sequence[int] = tuple(PROMPT)
    scale: float = 1.0
    slots: int = 4

    def __post_init__(self) -> None:
        self.target = TableTarget(self.vocab, self.slots, scale=self.scale)
        self.draft = TableTarget(self.vocab, scale=self.scale)
        noise = np.random.default_rng(1).standard_normal(self.draft.table.shape) * self.scale
        self.draft.table += 0.5 * noise.astype(np.float32)
        ending = self.ends or (self.regex and not self.ignored)
        self.stop_ids = frozenset({self.vocab - 1} if ending else ())
        self.grammars = Grammars(letters(self.vocab), self.vocab) if self.regex else None

    def processors(self) -> Processors:
        matcher = self.grammars.matcher("regex", self.regex or "") if self.grammars else None
        return Processors(self.penalties, self.prompt, matcher)

    def law(self) -> dict[Tokens, float]:
        """Each answer's probability, straight from the target."""
        law: dict[Tokens, float] = {}

        def go_on(answer: Tokens, chance: float) -> None:
            processors = self.processors()
            processors.accept(answer)
            if len(answer) == self.count or processors.ended:
                law[answer] = law.get(answer, 0.0) + chance
                return
            row = self.target.row([*self.prompt, *answer])
            processors.apply(row)
            step = law_of(row, self.sampling)
            for token in range(self.vocab):
                if step.of(token) == 0.0:
                    continue
                if token in self.stop_ids:
                    law[answer] = law.get(answer, 0.0) + chance * step.of(token)
                else:
                    go_on((*answer, token), chance * step.of(token))

        go_on((), 1.0)
        return law

    def request(self, key: int, verify: Verify, mode: Mode) -> Request:
        return Request(
            key=key,
            tokens=list(self.prompt),
            prompt=len(self.prompt),
            end=len(self.prompt) + self.count,
            sampling=self.sampling,
            stop_ids=self.stop_ids,
            processors=self.processors(),
            mode=mode,
            verify=verify,
            scope="app",
            reuse=False,
        )

    def engine(self, dice: Dice, draft: Any = None) -> Engine:
        self.target.held = [[] for _ in range(self.target.slots)]
        engine = Engine(self.target, Drafting(draft or TableDraft(self.draft), SuffixDraft()))
        engine.dice = engine.drafting.dice = dice
        return engine


def letters(vocab: int) -> Any:
    """As much of a tokenizer as a grammar needs: "a", "b", …, and the end."""

    class Letters:
        size = vocab
        stop_ids = frozenset({vocab - 1})

        def plain(self, text: str) -> list[int]:
            return [ord(letter) - 97 for letter in text if 0 <= ord(letter) - 97 < vocab - 1]

        def bytes_of(self, token: int) -> bytes:
            return b"" if token in self.stop_ids else bytes([97 + token])

        def piece(self, token: int) -> str:
            return "<end>"

    return Letters()


def answers(engine: Engine, requests: Sequence[Request]) -> tuple[Tokens, ...]:
    for request in requests:
        engine.add(request)
    while engine.busy:
        engine.step()
    return tuple(tuple(request.tokens[request.prompt :]) for request in requests)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Starts time anew."""

    def start() -> None:
        for module in (engine_module, drafting_module):
            monkeypatch.setattr(module, "time", Clock())

    return start


QUESTIONS = {
    "plain": Question(),
    "chain": Question(sampling=Sampling(0.8, top_k=2, top_p=0.95, min_p=0.05)),
    "end": Question(ends=True),
    "penalties": Question(penalties=Penalties(1.3, 0.4, 0.9, ((1, 0.7),))),
    "grammar": Question(sampling=Sampling(1.2), regex="a*(b|ba)a?b?"),
    "end ignored": Question(sampling=Sampling(1.2), regex="a*(b|ba)a?b?", ignored=True),
    "all": Question(
        sampling=Sampling(0.9, top_k=2, min_p=0.02), penalties=Penalties(1.2, 0.3, 0.5), regex="[ab]{2,4}"
    ),
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_an_answers_law_is_the_targets(
    question: Question, mode: Mode, how: Verify, clock: Callable[[], None]
) -> None:
    drafted = 0

    def run(dice: Dice) -> Tokens:
        nonlocal drafted
        clock()
        one = question.request(0, how, mode)
        (answer,) = answers(question.engine(dice), [one])
        drafted += one.tally.drafted
        return answer

    assert total_variation(outcomes(run), question.law()) < EXACT
    assert drafted > 0


@pytest.mark.parametrize("how", HOWS)
def test_batch_mates_are_independent(how: Verify) -> None:
    question = Question(2, 3, prompt=(0, 1, 0, 1))
    modes: tuple[Mode, Mode] = (("model", 3), ("chain", 3))

    def run(dice: Dice) -> tuple[Tokens, ...]:
        mates = [question.request(key, how, mode) for key, mode in enumerate(modes)]
        return answers(question.engine(dice), mates)

    law = question.law()
    joint: dict[tuple[Tokens, ...], float] = {
        (one, other): law[one] * law[other] for one in law for other in law
    }
    assert total_variation(outcomes(run), joint) < EXACT


class Rewording(TableDraft):
    """A draft whose tokens are not the ones it drew, as one of another vocabulary, or not all of them."""

    def __init__(self, table: TableTarget, reword: Callable[[list[int]], list[int]]) -> None:
        super().__init__(table)
        self.reword = reword

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        proposals = super().propose(contexts)
        for proposal in proposals:
            proposal.tokens = self.reword(proposal.tokens)
            del proposal.confidence[len(proposal.tokens) :]
            proposal.drawn = False
        return proposals


@pytest.mark.parametrize(
    "reword",
    [
        lambda tokens: [1 - token for token in tokens],
        lambda tokens: [token for token in tokens if token != 0],
        lambda tokens: tokens[: 1 + (tokens[-1] == 1)],
    ],
    ids=["shifted", "without zeros", "shortened after a look"],
)
@pytest.mark.parametrize("how", HOWS)
def test_a_draft_that_says_other_than_it_drew_changes_no_law(
    how: Verify, reword: Callable[[list[int]], list[int]]
) -> None:
    question = Question(2, prompt=(0, 1, 0, 1))

    def run(dice: Dice) -> Tokens:
        draft = Rewording(question.draft, reword)
        return answers(question.engine(dice, draft), [question.request(0, how, ("model", 3))])[0]

    assert total_variation(outcomes(run), question.law()) < EXACT


def deviation(question: Question, how: Verify, mode: Mode, samples: int) -> float:
    """How many standard deviations a chi-square over all answers is off; cells under 5 are pooled."""
    engine = question.engine(Dice(5))
    counts: Counter[Tokens] = Counter()
    for first in range(0, samples, WAITING):
        size = min(WAITING, samples - first)
        counts.update(answers(engine, [question.request(key, how, mode) for key in range(size)]))
    law = question.law()
    assert set(counts) <= set(law)
    cells = [(counts[answer], chance * samples) for answer, chance in law.items()]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if rare:
        cells.append((sum(count for count, _ in rare), sum(expected for _, expected in rare)))
    chi_square = sum((count - expected) ** 2 / expected for count, expected in cells)
    freedom = len(cells) - 1
    spread = 2 / (9 * freedom)  # Wilson and Hilferty 1931: the cube root is nearly normal
    found = ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
    print(f"{how} {mode}: {samples} samples, chi-square {chi_square:.1f} of {freedom}, {found:+.2f} sigma")
    return float(found)


def measured(samples: int, how: Verify, mode: Mode) -> None:
    question = Question(8, 4, Sampling(0.9, top_p=0.98), Penalties(frequency=0.4), scale=2.0, slots=8)
    assert deviation(question, how, mode, samples) < 5.0


@pytest.mark.parametrize("mode", MODES[:2], ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_chi_square_of_answers(how: Verify, mode: Mode) -> None:
    measured(1500, how, mode)


@pytest.mark.million
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES[:2], ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_chi_square_of_a_million_answers(how: Verify, mode: Mode) -> None:
    """A quarter of a million each; with -s it tells the figures."""
    measured(250_000, how, mode)


@pytest.mark.parametrize("how", HOWS)
def test_the_chi_square_can_fail(how: Verify, monkeypatch: pytest.MonkeyPatch) -> None:
    """With laws that are not what the draft drew from."""
    question = Question(8, 4, scale=2.0, slots=8)
    monkeypatch.setattr(drafting_module.Drafted, "laws", property(_flat))
    assert deviation(question, how, ("model", 3), 500) > 5.0


def _flat(drafted: drafting_module.Drafted) -> list[Law]:
    return [Law(np.full(8, 1 / 8)) for _ in drafted.tokens]
