"""What the shared options make of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from draftd.daemon.options import answer
from draftd.ipc.messages import Generate


@pytest.mark.parametrize("option", ["schema", "grammar"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, option: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, words in (("binary", "is not UTF-8 text"), ("missing", "No such file"), ("", "Is a directory")):
        given: dict[str, Any] = {option: tmp_path / name}
        with pytest.raises(typer.BadParameter, match=f"--{option}: .*{words}"):
            answer(**given)


@pytest.mark.parametrize(
    ("text", "policy"), [("true", True), ("false", False), ("off", "off"), ("model:4", "model:4")]
)
def test_true_and_false_are_policies_too(text: str, policy: bool | str) -> None:
    fields = answer(speculate=text)
    assert fields == {"speculate": policy}
    assert Generate(id="1", prompt="Hi", **fields).speculate == policy
