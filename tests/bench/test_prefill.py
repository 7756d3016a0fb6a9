from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

Program = Callable[[str], ModuleType]


def test_the_table_by_hand(program: Program) -> None:
    prefill = program("prefill")
    asked = [
        {
            "policy": policy,
            "prefilled": prefilled,
            "prefill": 0.0 if prefilled == "nothing" else 30.0,
            "first": first,
            "round": 4.0 if policy == "off" else 99.0,  # only the target alone says what a round takes
            "prompt_tokens": 7,
        }
        for policy in prefill.POLICIES
        for prefilled, firsts in zip(
            prefill.PREFILLED, ((40.0, 42.0, 90.0), (8.0,) * 3, (4.0,) * 3), strict=True
        )
        for first in firsts
    ]
    table = prefill.lines({"asked": asked})
    assert table[0].startswith("7 prompt tokens, medians of 3; a decode round of one token takes 4.0 ms.")
    assert table[4:6] == [
        "| off | nothing | 0 | 42.0 | 10.50 |",
        "| off | all but the question | 30 | 8.0 | 2.00 |",
    ]
    assert len(table) == 4 + 6 + 1


@pytest.mark.usefixtures("tiny_pair")
def test_a_real_pair_is_asked_with_and_without_a_prefill(
    run_main: Callable[..., ModuleType], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    prefill = run_main("prefill", "--pair", "tiny", "--words", "20", "--repetitions", "1", "--json", out)
    document = json.loads(out.read_text("utf-8"))
    assert (document["kind"], document["backend"]) == ("prefill", "llama_cpp")
    asked = document["asked"]
    found = sorted((each["policy"], each["prefilled"]) for each in asked)
    assert found == sorted(product(prefill.POLICIES, prefill.PREFILLED))
    assert all(each["first"] > 0 and each["prompt_tokens"] > 20 for each in asked)
    assert all((each["prefill"] > 0) == (each["prefilled"] != "nothing") for each in asked)
