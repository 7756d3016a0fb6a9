"""The protocol's version, how two peers agree on one, and what a daemon says it can do."""

from __future__ import annotations

from collections.abc import Sequence

VERSION = "1.0"  # of the protocol, apart from the package's
SPOKEN = {1: 0, 0: 1}  # by major version: the newest minor one this code speaks
# What `welcome` lists. An app looks here before it uses what a daemon of the same major version may lack.
CAPABILITIES = (
    *("generate", "grammar", "tools", "logprobs", "n", "beams", "rejection", "priority", "prefill", "clear"),
    *("credit", "lease", "deadline", "resume", "conversation", "unload"),
)


def choose(offered: Sequence[str]) -> str | None:
    """The version to speak with a peer that offers these, the best first; None if there is none.

    Of the first major version that both know, the lower minor: a minor version only adds.
    """
    for text in offered:
        major, _, minor = text.partition(".")
        if major.isdecimal() and minor.isdecimal() and int(major) in SPOKEN:
            return f"{int(major)}.{min(int(minor), SPOKEN[int(major)])}"
    return None
