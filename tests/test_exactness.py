"""Losslessness on real tiny models in fp32: speculation never changes a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftd.daemon.control import Mode
from draftd.daemon.drafting import Drafted, Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request
from draftd.daemon.scheduler import Work
from draftd.drafts.by_text import TextDraft
from draftd.drafts.by_tokens import TokenDraft
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.drafts.suffix import SuffixDraft
from draftd.models.base import Target
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.grammar import Grammars
from draftd.models.hf_tokenizer import HfTokenizer
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling
from draftd.models.spelling import Spelling
from draftd.models.transformers import TransformersTarget
from draftd.models.translation import Translation
from tests.fakes import ScriptedDraft
from tests.tiny import END_OF_TEXT, IM_END, retokenize, write_tiny
from tests.tiny_gguf import write_gguf

PROMPT = list(b"The quick brown fox")
COUNT = 24
PADDING = tuple((token, -100.0) for token in range(259, 272))  # ids without text: no tokenizer shares them
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "b"), ("q", "u"))
VOCAB = 272
STOPS = (END_OF_TEXT, IM_END)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exact")
    write_gguf(write_tiny(root / "target"), root / "same.gguf")
    write_gguf(write_tiny(root / "noisy", noise=0.15), root / "noisy.gguf")
    write_gguf(retokenize(root / "target", root / "shuffled"), root / "shuffled.gguf")
    write_gguf(retokenize(root / "noisy", root / "merged", MERGES), root / "merged.gguf")
    return root


@pytest.fixture(scope="module", params=["transformers", "llama_cpp"])
def target(request: pytest.FixtureRequest, files: Path) -> Iterator[Target]:
    if request.param == "transformers":
        loaded: Target = TransformersTarget.load(
            files / "target", slots=4, context=128, dtype="float32", device="cpu", threads=1
        )
    else:
        loaded = LlamaTarget.load(files / "same.gguf", slots=4, context=128, threads=1)
    yield loaded
    loaded.close()


def open_draft(path: Path) -> LlamaDraft:
    return LlamaDraft(LlamaTarget.load(path, slots=4, context=128, threads=1))


def open_foreign(path: Path, target: Target, files: Path, by: str) -> TokenDraft | TextDraft:
    """A draft whose tokenizer is not the target's."""
    kind = TokenDraft if by == "tokens" else TextDraft
    return kind(open_draft(path), translate(path, target, files))


def translate(path: Path, target: Target, files: Path) -> Translation:
    """Between the tokenizer of a draft and the target's."""
    ours, theirs = (Spelling(GGUFTokenizer(file)) for file in (path, files / "same.gguf"))
    return Translation(ours, theirs, target.vocab, target.vocab)


def make(
    key: int,
    sampling: Sampling,
    mode: Mode,
    prompt: list[int] = PROMPT,
    processors: Processors | None = None,
) -> Request:
    return Request(
        key=key,
        tokens=list(prompt),
        prompt=len(prompt),
        end=len(prompt) + COUNT,
        sampling=sampling,
        stop_ids=frozenset(STOPS if processors is not None else ()),
        processors=processors,
        mode=mode,
        reuse=False,
    )


def run(engine: Engine, requests: list[Request]) -> list[list[int]]:
    for each in requests:
        engine.add(each)
    while engine.busy:
        engine.step()
    return [each.tokens[each.prompt :] for each in requests]


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


@pytest.fixture(scope="module")
def grammars(files: Path) -> Grammars:
    return Grammars(HfTokenizer.load(files / "target"), VOCAB)


@pytest.fixture(scope="module")
def noisy(files: Path) -> Iterator[LlamaDraft]:
    draft = open_draft(files / "noisy.gguf")
    yield draft
    draft.close()


chains = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.6, 1.0, 1.7]),
    top_k=st.sampled_from([0, 2, 30]),
    top_p=st.sampled_from([1.0, 0.9, 0.5]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**64 - 1),
)
penalties = st.builds(
    Penalties,
    repetition=st.sampled_from([1.0, 0.8, 1.3]),
    presence=st.sampled_from([0.0, 0.6, -0.4]),
    frequency=st.sampled_from([0.0, 0.3]),
    bias=st.lists(st.tuples(st.integers(0, VOCAB - 1), st.floats(-4.0, 4.0, width=16)), max_size=3).map(
        tuple
    ),
)
requests = st.tuples(
    chains,
    penalties,
    st.sampled_from(
        [
            None,
            "a+",
            "ab?",
            "[ -~]{4,40}",
            "([a-z]+ )*[.!?]",
            "(yes|no)(, (yes|no))*",
            '"[a-f]{3}": [0-9]{1,9}',
        ]
    ),
    st.sampled_from(["model", "suffix", "chain", "auto"]),
    st.integers(1, 9),
    st.binary(min_size=1, max_size=24).map(list),
    st.booleans(),
)


@given(asked=st.lists(requests, min_size=1, max_size=4))
@settings(max_examples=45, suppress_health_check=[HealthCheck.too_slow])
def test_no_draft_or_batch_mate_changes_a_token_with_every_processor_on(
    target: Target, noisy: LlamaDraft, grammars: Grammars, asked: list[Any]
) -> None:
    """Some 200 requests of two targets, each alone without a draft and again drafted for among others."""

    def questions(drafted: bool) -> list[Request]:
        made = []
        for key, (sampling, penalties, regex, source, length, prompt, endless) in enumerate(asked):
            matcher = None if regex is None else grammars.matcher("regex", regex)
            mode: Mode = "off" if not drafted else "auto" if source == "auto" else (source, length)
            made.append(make(key, sampling, mode, prompt, Processors(penalties, prompt, matcher)))
            if endless:  # what would end it is a token like the others
                made[-1].stop_ids = frozenset()
        return made

    alone = [run(Engine(target), [question])[0] for question in questions(drafted=False)]
    assert run(Engine(target, Drafting(noisy, SuffixDraft())), questions(drafted=True)) == alone


class Watched(Drafting):
    """Sees to it that what goes to the target is what each request's grammar admits."""

    offered = 0

    def draft(self, batch: Sequence[Work]) -> list[Drafted]:
        drafts = super().draft(batch)
        for work, drafted in zip(batch, drafts, strict=True):
            assert work.request.processors is not None
            assert work.request.processors.fitting(drafted.tokens) == len(drafted.tokens)
            self.offered += len(drafted.tokens)
        return drafts


@pytest.mark.parametrize("mode", [("model", 6), ("chain", 6)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_draft_by_text_says_against_the_grammar_is_not_offered(
    target: Target, files: Path, grammars: Grammars, temperature: float, mode: Mode
) -> None:
    """It chooses in its own tokens, which no grammar's mask knows: here "fig " fits, and "tr" never."""
    translation = translate(files / "merged.gguf", target, files)
    says = ScriptedDraft(VOCAB, *translation.draft.spell(b"fig tree"), sure=30.0)

    def ask(engine: Engine, mode: Mode) -> list[list[int]]:
        processors = Processors(Penalties(), PROMPT, grammars.matcher("regex", "[a-m ]{20}"))
        return run(engine, [make(0, Sampling(temperature, seed=5), mode, processors=processors)])

    drafting = Watched(TextDraft(says, translation), SuffixDraft())
    assert ask(Engine(target, drafting), mode) == ask(Engine(target), "off")
    assert drafting.offered > 0
