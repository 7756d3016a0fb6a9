from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draftd.daemon.engine import Engine
from draftd.daemon.request import Request, Tally

Program = Callable[[str], ModuleType]
Run = Callable[..., ModuleType]


def given(folder: Path) -> list[str | Path]:
    """Three short prompts, two of them of one category, and how they are to be asked."""
    prompts = folder / "prompts.jsonl"
    lines = [
        {"question_id": number, "category": each, "turns": [f"say {number}"]}
        for number, each in enumerate("aba")
    ]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    asked: list[str | Path] = [
        prompts,
        "--pair",
        "tiny",
        "--temperature",
        "0.9",
        "--max-tokens",
        "12",
        "--length",
        "3",
    ]
    return [*asked, "--json", folder / "out.json"]


def test_a_row_by_hand(program: Program) -> None:
    found = program("verify_modes").Found(0.8, "coupled")
    found.add(Tally(rounds=2, drafted=6, accepted=3))
    found.add(Tally(rounds=1))
    assert found.cells == ["0.8", "coupled", "3/6", "0.500", "2.00"]


@pytest.mark.usefixtures("tiny_pair")
def test_a_real_pair_answers_each_prompt_in_all_modes(
    run_main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = run_main("verify_modes", *given(tmp_path))
    document = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (document["kind"], document["backend"]) == ("verify modes", "llama_cpp")
    assert (document["asked"], document["prompts"]) == (2, 2)
    found = document["found"]
    assert [(each["temperature"], each["verify"]) for each in found] == [(0.9, how) for how in modes.MODES]
    assert modes.MODES == ("coupled", "rejection-token", "rejection")
    for each in found:
        assert 2 <= each["rounds"] <= 2 * 12
        assert 0 <= each["accepted"] <= each["drafted"] <= 3 * each["rounds"]
    assert sum(each["drafted"] for each in found) > 0
    said = capsys.readouterr()
    assert said.out.splitlines() == modes.lines(document)
    assert said.out.startswith("2 prompts, 12 tokens each, up to 3 drafted a round by draft;")
    assert "2 of 2: b\n" in said.err


@pytest.mark.usefixtures("tiny_pair")
def test_a_run_that_is_cut_keeps_what_it_came_to_and_says_so(
    program: Program, run_main: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = program("verify_modes")
    whole, answered = modes.answer, list[Sequence[Request]]()

    def cut(engine: Engine, requests: Sequence[Request]) -> None:
        if len(answered) == 2:
            raise KeyboardInterrupt
        answered.append(requests)
        whole(engine, requests)

    monkeypatch.setattr(modes, "answer", cut)
    with pytest.raises(KeyboardInterrupt):
        run_main("verify_modes", *given(tmp_path), "--per-category", "2")
    document: dict[str, Any] = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (document["asked"], document["prompts"]) == (3, 2)
    rounds = [sum(each.tally.rounds for each in both) for both in zip(*answered, strict=True)]
    assert [each["rounds"] for each in document["found"]] == rounds
    assert modes.lines(document)[0].startswith("**The run was ended after 2 of 3 prompts.** 2 prompts, 12 ")
