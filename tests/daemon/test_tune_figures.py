"""What is measured of a draft, and which one that makes the choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from draftd.daemon import tune_figures
from draftd.daemon.tuned import SHIPPED, Figure
from draftd.models.base import Rows, Span
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.pair import By, PairReport
from draftd.models.spelling import Spelling
from draftd.models.translation import Translation
from draftd.models.trim import Trimmed
from tests.daemon.tuning import TEXT
from tests.fakes import TableTarget
from tests.tiny_gguf import write_gguf

WIDTHS = {1: 0.1, 2: 0.1, 5: 0.1, 17: 0.1}  # a memory-bound target: checking is free


def figure(speedup: float, types: str = "Q4_0") -> Figure:
    return Figure(
        source="d", types=types, size=1, milliseconds=1.0, acceptance=0.5, length=1, speedup=speedup
    )


# ---- the choice


def test_the_best_length_by_hand() -> None:
    half = [0.5, 0.25, 0.125]
    length, speed = tune_figures.best_length(0.01, half, {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1})
    assert length == 2  # a third one brings 1.875 / 1.3
    assert speed == pytest.approx(1.75 / 1.2)
    length, speed = tune_figures.best_length(0.03, half, {1: 0.1, 4: 0.1})
    assert length == 1  # a second one brings 1.75 / 1.6
    assert speed == pytest.approx(1.5 / 1.3)


def test_rows_between_the_measured_widths_are_interpolated() -> None:
    length, speed = tune_figures.best_length(0.02, [1.0, 1.0], {1: 0.1, 3: 0.3})
    assert length == 1
    assert speed == pytest.approx(2 * 0.1 / 0.22)
    length, speed = tune_figures.best_length(0.001, [1.0] * 4, {1: 0.1, 3: 0.14, 5: 1.0})
    assert length == 2
    assert speed == pytest.approx(3 * 0.1 / 0.142)


def test_the_prompt_is_read_once_for_each_token_of_the_answer() -> None:
    flat, certain = {1: 0.1, 4: 0.1}, [1.0] * 3
    assert tune_figures.best_length(0.01, certain, flat)[1] == pytest.approx(0.4 / 0.13)
    assert tune_figures.best_length(0.01, certain, flat, reading=0.005)[1] == pytest.approx(0.4 / 0.15)


def test_drafts_that_do_not_pay_are_still_told_apart() -> None:
    slow, slower = (tune_figures.best_length(seconds, [0.4, 0.2], WIDTHS) for seconds in (0.1, 0.2))
    assert (slow[0], slower[0]) == (1, 1)
    assert (slow[1], slower[1]) == pytest.approx((1.4 / 2, 1.4 / 3))


def test_drafts_survive_longer_where_agreement_comes_in_runs() -> None:
    runs = tune_figures.survival(np.array([True] * 32 + [False] * 32))
    mixed = tune_figures.survival(np.array([True, False] * 32))
    assert runs[0] == pytest.approx(32 / 41)  # of 41 starts of 24 tokens
    assert runs[15] == pytest.approx(17 / 41)
    assert mixed[0] == pytest.approx(21 / 41)
    assert mixed[1:] == [0.0] * 23


def test_the_faster_draft_wins_only_clearly() -> None:
    shipped, slower, little, clearly = (figure(speed) for speed in (2.0, 1.9, 2.05, 2.1))
    assert tune_figures.choose([shipped, slower], 0) == 0
    assert tune_figures.choose([shipped, little], 0) == 0
    assert tune_figures.choose([shipped, little, clearly], 0) == 2
    assert tune_figures.choose([figure(1.0), figure(1.0)], 0) == 0


def test_a_file_that_is_here_wins_over_one_that_is_hardly_faster() -> None:
    shipped, itself = figure(1.0, SHIPPED), figure(2.0, SHIPPED)
    assert tune_figures.choose([shipped, itself, figure(2.04)], 0) == 1
    assert tune_figures.choose([shipped, itself, figure(2.1)], 0) == 2


def test_without_a_draft_of_its_own_a_pair_needs_a_gain() -> None:
    assert tune_figures.choose([figure(1.0), figure(1.02)], None) is None
    assert tune_figures.choose([figure(1.0), figure(1.5)], None) == 1
    assert tune_figures.choose([], None) is None


# ---- measuring


def test_agreement_is_counted_at_every_position() -> None:
    target, other = TableTarget(seed=0), TableTarget(seed=1)
    tokens = [index * 5 % 8 for index in range(150)]  # more than one chunk
    choices = tune_figures.first_choices(target, tokens, 8)
    assert choices.tolist() == [int(target.row(tokens[: end + 1]).argmax()) for end in range(150)]
    assert (choices == tune_figures.first_choices(other, tokens, 8)).mean() < 0.5
    assert tune_figures.first_choices(target, tokens, 3).max() < 3


def test_agreement_of_a_trimmed_draft_is_counted_in_its_own_ids() -> None:
    draft = TableTarget()  # of 8 tokens
    kept = np.array([1, 3, 4, 8, 9, 12, 13, 15], np.int32)
    report = PairReport("tokens", 0, "", trimmed=Trimmed(kept, 16, 16))
    own = [index * 5 % 8 for index in range(40)]
    says = tune_figures.first_choices(draft, own, 8)
    wanted = kept[says].astype(np.int64)
    wanted[10:20] = 2  # none of its tokens
    agreed = tune_figures.agreement(draft, [int(kept[token]) for token in own], wanted, report)
    assert agreed.tolist() == [True] * 10 + [False] * 10 + [True] * 20


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    order: list[int] = []

    class Timed(TableTarget):
        def forward(self, spans: Sequence[Span]) -> list[Rows]:
            if spans[0].rows == len(spans[0].tokens) == 1:
                order.append(self.name)
                clock[0] += self.cost * (1 + len(order) // 8)  # the machine gets slower all the time
            return super().forward(spans)

        name, cost = 0, 1.0

    monkeypatch.setattr(tune_figures, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    one, two = Timed(), Timed()
    two.name, two.cost = 1, 2.0
    first, second = tune_figures.token_seconds([one, two], list(range(8)) * 8, 4)
    assert order == [0] * 4 + [1] * 8 + [0] * 8 + [1] * 8 + [0] * 4
    assert 1.5 < second / first < 2.7


def test_a_draft_that_lacks_the_targets_tokens_is_timed_too() -> None:
    seconds = tune_figures.token_seconds([TableTarget(vocab=50), TableTarget(vocab=8)], list(range(50)), 2)
    assert all(each > 0 for each in seconds)


def test_agreement_by_text_is_one_text_beginning_the_other(tiny_files: Path, tmp_path: Path) -> None:
    same = write_gguf(tiny_files / "target", tmp_path / "same.gguf")
    words = [Spelling(GGUFTokenizer(same)) for _ in range(2)]
    translation = Translation(words[0], words[1], 272, 272)
    model = LlamaTarget.load(same, slots=1, context=64, threads=1)
    tokens = list(TEXT.encode()[:100])
    choices = tune_figures.first_choices(model, tokens[:64], 259)
    choices = np.concatenate([choices, choices[:36]])
    text = tune_figures.first_choices(model, tokens[:64], 272) < 256  # others have no text to compare
    ways: tuple[By, ...] = ("tokens", "text")
    for by in ways:
        report = PairReport(by, 0, "", translation=translation)
        agreed = tune_figures.agreement(model, tokens, choices, report)
        assert len(agreed) == 64, "as many as fit the draft"
        assert agreed[text].all()
        assert not tune_figures.agreement(model, tokens, (choices + 1) % 256, report).any()
    model.close()
