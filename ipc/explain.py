"""What pydantic found wrong, as a sentence: of messages, settings and files."""

from __future__ import annotations

from pydantic import ValidationError

MAX_FAULTS = 5  # wrong fields named in one sentence


def explain(error: ValidationError) -> str:
    """One sentence: each wrong field with what it should be."""
    parts = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        text = _plain(item["msg"])
        parts.append(f"{where}: {text}" if where else text)
    return "; ".join(parts[:MAX_FAULTS] + [f"and {len(parts) - MAX_FAULTS} more"] * (len(parts) > MAX_FAULTS))


def _plain(text: str) -> str:
    """A validator's words, as the end of a sentence that began with the field's name."""
    text = text.removeprefix("Value error, ").replace("Field required", "is missing")
    return text.replace("Input should be", "should be")
