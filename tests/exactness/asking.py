"""An engine asked, and the drafts that it is asked with."""

from __future__ import annotations

from pathlib import Path

from draftd.daemon.control import Mode
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request
from draftd.drafts.by_text import TextDraft
from draftd.drafts.by_tokens import TokenDraft
from draftd.drafts.llama_cpp import LlamaDraft
from draftd.models.base import Target
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.processors import Processors
from draftd.models.sampling import Sampling
from draftd.models.spelling import Spelling
from draftd.models.translation import Translation
from tests.daemon import traffic
from tests.tiny import END_OF_TEXT, IM_END

PROMPT = list(b"The quick brown fox")
COUNT = 24
VOCAB = 272
STOPS = (END_OF_TEXT, IM_END)


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
    traffic.run(engine, *requests)
    return [each.tokens[each.prompt :] for each in requests]
