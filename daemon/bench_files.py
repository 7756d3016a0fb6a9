"""The files of a benchmark: the prompts that it reads, the document that it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from draftd.ipc.errors import InvalidRequest
from draftd.ipc.explain import explain


class Prompt(BaseModel):
    """A line of the prompts file; of several turns the first is asked."""

    question_id: int | str
    category: str = Field(min_length=1)
    turns: list[str] = Field(min_length=1)


def read_prompts(path: Path, per_category: int | None) -> list[Prompt]:
    """The file's prompts, in its order; InvalidRequest names the file and the line that is wrong."""
    try:
        lines = path.read_text("utf-8").split("\n")  # a string of JSON may hold what else ends a line
    except OSError as error:
        raise InvalidRequest(f"cannot read the prompts file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"the prompts file {path} is not UTF-8 text") from None
    found: list[Prompt] = []
    count: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = Prompt.model_validate_json(line)
        except ValidationError as error:
            raise InvalidRequest(f"{path} line {number}: {explain(error)}") from None
        count[prompt.category] = count.get(prompt.category, 0) + 1
        if per_category is None or count[prompt.category] <= per_category:
            found.append(prompt)
    if not found:
        raise InvalidRequest(f"the prompts file {path} holds no prompt")
    return found


def unwritable(path: Path) -> str:
    """Why no file can be written there, "" if one can: better known before a run than at its end."""
    folder = path.absolute().parent
    # pathlib's own raise where a folder on the way can't be searched
    if not os.path.isdir(folder):
        return f"there is no directory {folder}"
    if os.path.isdir(path):
        return f"{path} is a directory"
    there = os.path.exists(path)
    if not os.access(path if there else folder, os.W_OK if there else os.W_OK | os.X_OK):
        return f"{path} can't be written"
    return ""


def write(path: Path | None, document: dict[str, Any]) -> None:
    """Write it as JSON; None: nowhere."""
    if path is not None:
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
