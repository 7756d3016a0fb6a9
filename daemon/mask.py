"""Personal data and secrets out of text that is to be logged: a short list of patterns, with their reasons.

The maintained libraries for this (Presidio, scrubadub) bring language models of their own, which a log line
is not worth. A pattern errs on the side of hiding: a long number that was no card is a small loss.
"""

from __future__ import annotations

import re

MASKS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # What begins a key tells whose it is, so these come first. A PEM block goes to its end or the text's.
    (
        "key",
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
    ),
    # JSON web tokens: three base64 parts, of which the first says {"...
    ("token", re.compile(r"\beyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?")),
    # Keys that name their service: OpenAI, Stripe, GitHub, GitLab, Slack, Google, AWS, Hugging Face …
    ("token", re.compile(r"\b(?:sk|pk|rk)[-_][\w-]{10,}")),
    (
        "token",
        re.compile(r"\b(?:gh[oprsu]_|github_pat_|glpat-|xox[abeoprs]-|ya29\.|hf_|npm_|pypi-)[\w-]{10,}"),
    ),
    ("token", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}")),
    # What follows the words that announce a secret, and passwords in addresses.
    ("secret", re.compile(r"(?i)(?<=bearer )\s*[\w.~+/=-]{6,}")),
    (
        "secret",
        re.compile(
            r"(?i)((?:api[_-]?key|access[_-]?key|auth|token|secret|passw(?:or)?d|pwd)"
            r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&]{3,}"
        ),
    ),
    ("secret", re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")),
    # Long runs of hexadecimal or base64 with digits and letters: keys and digests of no known maker.
    ("token", re.compile(r"(?<![\w+/-])(?=[\w+/-]*\d)(?=[\w+/-]*[A-Za-z])[\w+/-]{32,}={0,2}")),
    ("e-mail", re.compile(r"(?<![^\s@<>\"'(),:;])[^\s@<>\"'(),:;]++@[^\s@<>\"'(),:;]+\.[^\W\d_]{2,}")),
    # Thirteen to nineteen digits, grouped or not: payment cards, and what is as long.
    ("card", re.compile(r"(?<!\d)\d(?:[ .-]?\d){12,18}(?!\d)")),
    # Seven to fifteen digits (E.164) after a plus or a zero, with brackets and separators.
    ("phone", re.compile(r"(?<![\w.])(?:\+|00|\(0?|0)\d(?:[ ./()-]{0,2}\d){5,14}(?!\d)")),
    ("phone", re.compile(r"(?<![\w.-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\d)")),
)


def masked(text: str) -> str:
    """The text with <e-mail>, <phone>, <card>, <token>, <key> or <secret> where such a thing stood."""
    for name, pattern in MASKS:
        keeps = "\\1" if pattern.groups else ""
        text = pattern.sub(f"{keeps}<{name}>", text)
    return text
