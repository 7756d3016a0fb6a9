"""The same with penalties, bias and grammars, which drafts must follow too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.drafts.suffix import SuffixDraft
from draftd.models.base import Target
from draftd.models.grammar import Grammars
from draftd.models.hf_tokenizer import HfTokenizer
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling
from tests.exactness.asking import PROMPT, VOCAB, make, open_draft, run, translate
from tests.fakes import ScriptedDraft


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
