"""How good a draft is here: what is measured of it, and what speed that promises."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from draftd.daemon.tuned import SHIPPED, Figure
from draftd.models.base import Span, Target
from draftd.models.pair import By, PairReport
from draftd.models.translation import Translation

LONGEST = 24  # drafted tokens a round
MARGIN = 1.03  # a tuned file must be this much faster than one as it came: it takes disk
CHUNK = 64  # rows of logits at a time
WARM = 32  # tokens before those that are timed


def first_choices(model: Target, tokens: Sequence[int], shared: int) -> NDArray[np.int64]:
    """The likeliest next token behind each token of a text, among the first `shared` ids."""  # [tokens]
    return np.concatenate([rows[:, :shared].argmax(axis=1) for rows in _rows(model, tokens)])


def agreement(
    draft: Target, tokens: Sequence[int], choices: NDArray[np.int64], report: PairReport
) -> NDArray[np.bool_]:
    """Where the draft's first choice behind each token of a text is the target's.

    Shorter than the text where a draft with another tokenizer needs more tokens for it than fit. A draft by
    text agrees where its token is the beginning of the target's, or the other way round.
    """  # [tokens]
    if (trimmed := report.trimmed) is not None:
        ids = trimmed.draft_ids(tokens)
        wanted = np.array(trimmed.draft_ids(choices.tolist()))
        known: NDArray[np.bool_] = first_choices(draft, ids, draft.vocab) == wanted
        return known
    translation = report.translation
    if translation is None:
        agreed: NDArray[np.bool_] = first_choices(draft, tokens, report.shared) == choices
        return agreed
    ids, lengths = translation.draft_ids(tokens), translation.lengths(tokens)
    ends = np.cumsum(lengths) + len(ids) - sum(lengths) - 1  # where the draft has read each token
    rows = (row for part in _rows(draft, ids[: draft.context]) for row in part)
    found, row, position = [], None, -1
    for end, choice in zip(ends, choices, strict=True):
        while position < end and (row := next(rows, None)) is not None:
            position += 1
        if row is None:
            break
        found.append(_agrees(row, int(choice), report.by, translation))
    return np.array(found, np.bool_)


def _rows(model: Target, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """The rows behind each token of a text, a piece of it at a time."""  # [part, vocab]
    model.truncate(0, 0)
    for start in range(0, len(tokens), CHUNK):
        part = tokens[start : start + CHUNK]
        yield model.forward([Span(0, start, part, len(part))])[0]


def _agrees(row: NDArray[np.float32], choice: int, by: By, translation: Translation) -> bool:
    """Whether a row of the draft's chooses as the target did."""
    if by == "tokens":
        return int(translation.row(row).argmax()) == choice
    ours, theirs = translation.draft.text(int(row.argmax())), translation.target.text(choice)
    return bool(ours and theirs) and (ours.startswith(theirs) or theirs.startswith(ours))


def token_seconds(models: Sequence[Target], tokens: Sequence[int], rounds: int) -> list[float]:
    """The median time of a one-token pass of each model, taking turns since the machine's speed wanders."""
    times: list[list[float]] = [[] for _ in models]
    # any tokens do, and of those of another tokenizer a draft may lack some
    texts = [[token % model.vocab for token in tokens[:WARM]] for model in models]
    for model, text in zip(models, texts, strict=True):
        model.truncate(0, 0)
        model.forward([Span(0, 0, text, 1)])
    for turn in range(rounds):
        for place in range(len(models)):
            index = (place + turn) % len(models)
            model = models[index]
            model.truncate(0, WARM)
            for step in range(4):
                began = time.perf_counter()
                model.forward([Span(0, WARM + step, texts[index][step : step + 1], 1)])
                times[index].append(time.perf_counter() - began)
    return [statistics.median(each) for each in times]


def best_length(
    seconds: float, survival: Sequence[float], passes: Mapping[int, float], reading: float = 0.0
) -> tuple[int, float]:
    """The draft length that is expected to be fastest, and its speed over the target alone.

    At least 1: where no draft pays on the whole, the best one still does on the texts that it knows well.

    `survival[i]` is how often i + 1 drafted tokens are all accepted, so a round of k gives 1 + the sum of the
    first k tokens; it takes k draft passes and one of k + 1 rows. `passes` is the target's seconds by rows,
    interpolated between those measured; `reading` the draft's for a token of the prompt, which is taken to be
    as long as its answer.
    """
    widths = sorted(passes)
    times = [passes[width] for width in widths]
    best, fastest, tokens = 0, 0.0, 1.0
    for length, chance in enumerate(survival, 1):
        tokens += chance
        cost = length * seconds + float(np.interp(length + 1, widths, times)) + tokens * reading
        if (speed := tokens * passes[1] / cost) > fastest:
            best, fastest = length, speed
    return best, fastest


def survival(agreed: NDArray[np.bool_]) -> list[float]:
    """How often drafts of 1, 2, … LONGEST tokens are accepted whole, begun anywhere in a text.

    Agreement comes in runs (code, then prose), so this is more than powers of its mean. `agreed` is [tokens].
    """
    windows = np.lib.stride_tricks.sliding_window_view(agreed, LONGEST)  # [starts, LONGEST]
    return [float(share) for share in np.logical_and.accumulate(windows, axis=1).mean(axis=0)]


def choose(figures: Sequence[Figure], shipped: int | None) -> int | None:
    """The figure to draft with: the shipped draft unless another is clearly faster; None without a gain.

    A file that would have to be kept for it must be clearly faster than one that is here anyway.
    """

    def worth(index: int) -> float:
        figure = figures[index]
        return figure.speedup / (1.0 if figure.types == SHIPPED else MARGIN)

    best = max(range(len(figures)), key=worth, default=None)
    if best is None or shipped is None:
        return best if best is not None and figures[best].speedup > MARGIN else None
    return best if figures[best].speedup > MARGIN * figures[shipped].speedup else shipped
