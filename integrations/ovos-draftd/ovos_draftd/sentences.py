"""Text that grows, cut where a voice may begin to speak it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

CLOSING = "\"'”’»」』）)\\]*_"  # noqa: RUF001
# Where a sentence may end: at a line's end; after the full stops of scripts that put no space there; after
# other full stops and their like, and a space. What comes next must be there: without it "e.g. this" can't be
# told from an end.
END = re.compile(rf"\n+|[。！？｡][{CLOSING}]*(?=[^{CLOSING}])|[.!?…।؟]+[{CLOSING}]*[^\S\n]+(?=(\S))")  # noqa: RUF001
# What has a full stop and mostly goes on: titles, initials, small numbers ("1. Boil water", "am 3. Oktober").
# To be wrong here only makes two sentences one. Those that may end one too, as etc., are not here: they go on
# before a small letter, as anything does.
GOES_ON = re.compile(
    r"(?:^|[\s(\"'“])"
    r"(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|cf|approx|z\.b|d\.h|bzw|ca|evtl|p\.ej|sra?|[a-z]|\d{1,2})\.$",
    re.IGNORECASE,
)
BEFORE_NUMBER = re.compile(r"(?:^|\s)(?:no|nr|fig|vol|pp?)\.$", re.IGNORECASE)
OPEN, CLOSE = "<think>", "</think>"


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """The sentences of a text that comes in pieces, without the space around them; nothing is lost."""
    rest = ""
    for piece in pieces:
        rest += piece
        *whole, rest = split(rest)
        yield from whole
    if last := rest.strip():
        yield last


def split(text: str) -> list[str]:
    """The sentences that have surely ended, and last what is left of the text."""
    found, start = [], 0
    for match in END.finditer(text):
        sentence = text[start : match.end()].strip()
        after = match[1]
        if after is not None and goes_on(sentence, after):
            continue
        start = match.end()
        if sentence:
            found.append(sentence)
    return [*found, text[start:]]


def goes_on(sentence: str, after: str) -> bool:
    """Is what looks like an end the middle of a sentence? `after`: the character that comes next."""
    if after.islower() or GOES_ON.search(sentence):
        return True
    return after.isdigit() and BEFORE_NUMBER.search(sentence) is not None


def spoken(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without what stands between <think> and </think>: a thought is not said."""
    held, mark = "", OPEN
    for piece in pieces:
        held += piece
        while mark in held:
            before, _, held = held.partition(mark)
            if mark == OPEN and before:
                yield before
            mark = CLOSE if mark == OPEN else OPEN
        # What may be the beginning of a mark waits for what comes.
        keep = next(size for size in range(len(mark) - 1, -1, -1) if held.endswith(mark[:size]))
        if mark == OPEN and len(held) > keep:
            yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if mark == OPEN and held:
        yield held
