"""The files that could draft for a pair here: as they came, in other types, with fewer tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from draftd.daemon import readings, tuned
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import SHIPPED
from draftd.models import trim
from draftd.models.catalog import Model, Pair
from draftd.models.fetch import cached_path
from draftd.models.gguf_tensors import read_tensors
from draftd.models.gguf_tokenizer import GGUFTokenizer
from draftd.models.quantize import RECIPES, Recipe, check_room, expected_bytes, quantize, unfit

QUICK = ("Q4_0", "Q4_0+Q8_0")  # the recipes that won wherever we measured
ITSELF = ("Q4_0", "Q4_0+Q8_0", "Q4_K+Q6_K")  # of the target: it should take less than it does as it is


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could draft: as it came, or written anew in other types or of fewer tokens."""

    source: Model
    recipe: Recipe | None
    path: Path
    trimmed: trim.Choice | None = None
    origin: Path | None = None  # what it is written from; None: it is here already

    @property
    def types(self) -> str:
        types = [] if self.recipe is None else [self.recipe.name]
        if self.trimmed is not None:
            kept = len(self.trimmed.kept)
            types.append(f"{f'{kept // 1000}k' if kept >= 1000 else kept} tokens")
        return ", ".join(types) or SHIPPED

    def write(self, threads: int) -> None:
        """Make the file; raises as `quantize` does."""
        assert self.origin is not None
        if self.recipe is not None:
            quantize(self.origin, self.path, self.recipe, threads)
        else:
            assert self.trimmed is not None
            trim.write(self.origin, self.path, self.trimmed)


def plan(
    pair: Pair,
    settings: Settings,
    backend: str,
    quick: bool,
    workdir: Path,
    used: Collection[str] = frozenset(),
) -> tuple[list[Candidate], list[str]]:
    """The candidates, the draft as it came first, and sentences about those left out. Writes nothing yet.

    `used` are the scripts whose tokens are kept. Raises DiskFull if the disk can't take them all.
    """
    candidates: list[Candidate] = []
    skipped: list[str] = []
    sources = [] if pair.draft is None else [pair.draft]
    if reason := _no_self_draft(pair, settings, backend):
        skipped.append(f"no self-draft: {reason}")
    else:
        sources.append(pair.target)
    needed = 0
    for source in sources:
        path = cached_path(source, settings.cache_dir)
        tensors = read_tensors(path)
        candidates.append(Candidate(source, None, path))
        trimmed, origin = None, path
        # What it has no tokens for it can't read either, so it must be lent it.
        if backend == "transformers" and _file(source, settings) == _file(pair.target, settings):
            trimmed = _trimmed(path, used)
        if trimmed is not None:
            needed += path.stat().st_size
            origin = workdir / f"{source.name}-trimmed.gguf"
            candidates.append(Candidate(source, None, origin, trimmed, path))
        names = QUICK if quick else tuple(recipe.name for recipe in RECIPES)
        if tuned.is_itself(source.name, pair):  # in a hurry as it is, if there is another draft
            names = () if quick and pair.draft is not None else ITSELF
        for recipe in RECIPES:
            if recipe.name not in names:
                continue
            if reason := unfit(tensors, recipe):
                skipped.append(f"{source.name} as {recipe.name}: {reason}")
                continue
            needed += expected_bytes(tensors, recipe)
            made = workdir / f"{source.name}-{recipe.name}.gguf"
            candidates.append(Candidate(source, recipe, made, trimmed, origin))
    check_room(workdir, needed)
    return candidates, skipped


def _no_self_draft(pair: Pair, settings: Settings, backend: str) -> str:
    if pair.target.is_directory:
        return "the target is no GGUF file"
    if pair.draft is not None and _file(pair.draft, settings) == _file(pair.target, settings):
        return "the pair's draft is made from the target's file already"
    if backend == "llama_cpp":
        return "the target runs from the same file, as fast as it could draft"
    return ""


def _trimmed(path: Path, used: Collection[str]) -> trim.Choice | None:
    """What to keep of a file's vocabulary, if that is worth it."""
    tokenizer = GGUFTokenizer(path)
    return trim.choose([tokenizer.bytes_of(token) for token in range(tokenizer.size)], used)


def _file(model: Model, settings: Settings) -> Path:
    return cached_path(model, settings.cache_dir).resolve()


def that_fit(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Those that fit the memory together, since they are measured by turns."""
    room = 0.7 * readings.memory_room()[0]
    fit: list[Candidate] = []
    crowded = []
    for candidate in candidates:
        room -= 1.2 * candidate.path.stat().st_size
        if room > 0 or not fit:
            fit.append(candidate)
        else:
            crowded.append(f"{candidate.source.name} as {candidate.types}: too little memory to measure it")
    return fit, crowded
