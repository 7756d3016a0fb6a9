"""Losslessness on real tiny models in fp32: speculation never changes a token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from draftd.daemon.control import Mode
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.drafts.suffix import SuffixDraft
from draftd.models.base import Target
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling
from tests.exactness.asking import COUNT, PROMPT, make, open_draft, open_foreign, run

PADDING = tuple((token, -100.0) for token in range(259, 272))  # ids without text: no tokenizer shares them
CHAINS = [
    Sampling(0.0),
    Sampling(0.7),
    Sampling(1.5),
    Sampling(0.7, top_k=20),
    Sampling(1.5, top_p=0.9),
    Sampling(1.5, min_p=0.1),
    Sampling(0.7, top_k=40, top_p=0.95, min_p=0.02),
]


def drafted_like_alone(engine: Engine, chain: Sampling, seeds: int, *modes: Mode) -> tuple[int, int]:
    """Hold every mode to the answer without drafts, seed by seed; drafts accepted and drafted."""
    accepted = drafted = 0
    for seed in range(seeds):
        sampling = replace(chain, seed=seed)
        alone = run(engine, [make(0, sampling, "off")])
        for mode in modes:
            helped = make(1, sampling, mode)
            assert run(engine, [helped]) == alone
            accepted += helped.tally.accepted
            drafted += helped.tally.drafted
    return accepted, drafted


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_tokens_are_equal_with_and_without_speculation(target: Target, files: Path, chain: Sampling) -> None:
    draft = open_draft(files / "noisy.gguf")
    engine = Engine(target, Drafting(draft, SuffixDraft()))
    accepted, drafted = drafted_like_alone(engine, chain, 12, ("model", 6), ("chain", 6), "auto")
    draft.close()
    assert 0 < accepted < drafted, "a draft that is always right, or never, tests no rollback"


def test_another_number_of_threads_each_round_changes_nothing(target: Target) -> None:
    """What happens when other programs take the cores (daemon/threads.py)."""
    engine = Engine(target)
    alone = run(engine, [make(0, Sampling(1.0, seed=3), "off")])
    changing = make(1, Sampling(1.0, seed=3), "off")
    engine.add(changing)
    for count in range(COUNT):
        # few rounds with two: where there is one core for both they wait for each other's time slices
        target.set_threads(1 + (count % 4 == 0))
        engine.step()
    target.set_threads(1)
    assert changing.tokens[changing.prompt :] == alone[0]


def test_draft_length_and_batch_mates_change_nothing(target: Target, files: Path) -> None:
    draft = open_draft(files / "noisy.gguf")
    prompts = [PROMPT[:length] for length in (3, 9, 14, 19)]
    samplings = [Sampling(1.0, seed=seed) for seed in range(4)]
    alone = [
        run(Engine(target), [make(0, sampling, "off", prompt)])[0]
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    for length in (1, 3, 8):
        mates = [
            make(key, sampling, ("model", length), prompt)
            for key, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        ]
        assert run(Engine(target, Drafting(draft)), mates) == alone
    draft.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_with_the_targets_own_weights_is_always_accepted(
    target: Target, files: Path, temperature: float
) -> None:
    draft = open_draft(files / "same.gguf")
    one = make(0, Sampling(temperature, seed=4), ("model", 5))
    run(Engine(target, Drafting(draft)), [one])
    draft.close()
    assert one.tally.accepted == one.tally.drafted > 0


@pytest.mark.parametrize("by", ["tokens", "text"])
@pytest.mark.parametrize(
    "chain", [Sampling(0.0), Sampling(0.7), Sampling(1.5, top_k=40, top_p=0.95)], ids=str
)
def test_a_draft_with_another_tokenizer_changes_no_token(
    target: Target, files: Path, chain: Sampling, by: str
) -> None:
    drafts = [open_foreign(files / f"{name}.gguf", target, files, by) for name in ("shuffled", "merged")]
    accepted = drafted = 0
    for draft in drafts:
        engine = Engine(target, Drafting(draft, SuffixDraft()))
        modes: tuple[Mode, ...] = (("model", 1), ("model", 6), ("chain", 6), "auto")
        more_accepted, more_drafted = drafted_like_alone(engine, chain, 6, *modes)
        accepted, drafted = accepted + more_accepted, drafted + more_drafted
        draft.close()
    assert 0 < accepted < drafted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_targets_own_weights_under_other_ids_are_always_accepted(
    target: Target, files: Path, temperature: float
) -> None:
    """The noise goes by the target's ids, or another token would win now and then."""
    draft = open_foreign(files / "shuffled.gguf", target, files, "tokens")
    drafted = 0
    for seed in range(4):
        one = make(0, Sampling(temperature, seed=seed), ("model", 5))
        one.processors = Processors(Penalties(bias=PADDING), PROMPT)
        run(Engine(target, Drafting(draft)), [one])
        drafted += one.tally.drafted
        assert one.tally.accepted == one.tally.drafted
    draft.close()
    assert drafted > 20
