"""What the simulating programs replay: the real target's answers with their logits, and the draft's choices.

Recorded once by the real models, kept in a file, replayed for every place and policy. The draft's choice
behind a text is greedy, so it depends on the text alone, and on what it read of that: each is asked for once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from draftd.drafts.base import Context, Draft
from draftd.models.base import Rows, Span, Target
from draftd.models.sampling import confidence

Chosen = tuple[int, float]  # a token, and its probability
# Where each part that the draft passed over begins and ends, and the text behind the prompt.
Key = tuple[tuple[int, ...], tuple[int, ...]]
Opened = Callable[[], Draft]  # the real draft, loaded by the first that needs it


@dataclass(slots=True)
class Answer:
    """One prompt's greedy answer; `rows` predict its tokens, an end of text among them: [count, vocab]."""

    category: str
    prompt: list[int]
    rows: Rows
    drafted: dict[Key, Chosen] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        found: list[int] = self.rows.argmax(axis=1).tolist()
        return found


def record(
    target: Target, category: str, prompt: list[int], count: int, stop_ids: frozenset[int] = frozenset()
) -> Answer:
    """The target's own greedy answer, `count` tokens at most."""
    target.truncate(0, 0)
    rows: list[Rows] = []
    fed, at = list(prompt), 0
    while len(rows) < count and (not rows or fed[0] not in stop_ids):
        (row,) = target.forward([Span(0, at, fed, 1)])
        rows.append(row[-1].copy())
        at, fed = at + len(fed), [int(row[-1].argmax())]
    return Answer(category, prompt, np.stack(rows))


def choice(
    answer: Answer, opened: Opened, slot: int, tokens: Sequence[int], unread: tuple[int, ...] = ()
) -> Chosen:
    """What the draft chooses behind `tokens` (the prompt's first): as recorded, else asked and kept."""
    key = (unread, tuple(tokens[len(answer.prompt) :]))
    if key not in answer.drafted:
        edges = (0, *unread, len(tokens))
        # To one that passed over a part, the rest is all there ever was.
        read = [token for at in range(0, len(edges), 2) for token in tokens[edges[at] : edges[at + 1]]]
        asked = Context(slot, read, 1, _greedy, lambda _: False)
        (proposal,) = opened().propose([asked])
        answer.drafted[key] = (proposal.tokens[0], proposal.confidence[0])
    return answer.drafted[key]


def _greedy(row: NDArray[np.float32], position: int) -> Chosen:
    token = int(row.argmax())
    return token, confidence(row, token)


def save(path: Path, title: str, models: str, answers: Sequence[Answer]) -> None:
    """`title` says what was asked: `load` refuses another; `models` who answered and drafted."""
    about = {
        "title": title,
        "models": models,
        "answers": [
            {
                "category": each.category,
                "prompt": each.prompt,
                "drafted": [[*key, *chosen] for key, chosen in each.drafted.items()],
            }
            for each in answers
        ],
    }
    rows = {f"rows{number}": each.rows for number, each in enumerate(answers)}
    with path.open("wb") as file:
        np.savez(file, about=np.array(json.dumps(about)), **rows)  # type: ignore[arg-type]


def load(path: Path, title: str) -> tuple[str, list[Answer]]:
    """The models and answers that `save` kept; ends with a sentence if they are of another title."""
    with np.load(path) as kept:
        about = json.loads(str(kept["about"]))
        if about["title"] != title:
            raise SystemExit(f"{path} is a recording of {about['title']}, not of {title}: name another file")
        answers = [
            Answer(
                each["category"],
                each["prompt"],
                kept[f"rows{number}"],
                {
                    (tuple(unread), tuple(text)): (token, probability)
                    for unread, text, token, probability in each["drafted"]
                },
            )
            for number, each in enumerate(about["answers"])
        ]
        return about["models"], answers
