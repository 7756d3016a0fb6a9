from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Program = Callable[[str], ModuleType]


def test_jains_index(program: Program) -> None:
    scaling = program("scaling")
    assert scaling.jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert scaling.jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)


def test_a_run_that_ended_between_two_policies_has_a_table(program: Program) -> None:
    scaling = program("scaling")
    row = {"prompt_tokens": 9, "policy": "off", "speed": 4.0, "first_seconds": 1.0}
    rows = [row, row | {"policy": "auto", "speed": 6.0}, row | {"prompt_tokens": 99}]
    table = scaling.tables({"contexts": rows}, ["contexts"])[-2:]
    assert table[0].count("-") > 0
    assert table[1] == "| 9 | 4.00 | 6.00 | 1.50x | 1000 | 1000 |"


@pytest.mark.usefixtures("tiny_pair")
def test_parts_are_measured_one_after_the_other_into_one_file(
    run_main: Callable[..., ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    given = ["--pair", "tiny", "--backend", "llama_cpp", "--max-tokens", "6", "--json", out]
    with pytest.raises(SystemExit) as ended:
        run_main("scaling", *given, "--parts", "apps", "--apps", "1", "2")
    assert not ended.value.code
    with pytest.raises(SystemExit) as ended:  # a prompt of no words is refused
        run_main("scaling", *given, "--parts", "contexts", "--contexts", "64", "0")
    assert ended.value.code == 1
    document = json.loads(out.read_text("utf-8"))
    assert len(document["command"].splitlines()) == 2
    assert set(document["seconds"]) == {"apps", "contexts"}
    assert [(row["apps"], row["policy"]) for row in document["apps"]] == [
        (count, policy) for count in (1, 2) for policy in ("off", "auto")
    ]
    assert [row["policy"] for row in document["contexts"]] == ["off", "auto"], "of the first prompt"
    assert 0 < document["contexts"][0]["prompt_tokens"] <= 64
    for row in document["apps"]:
        assert len(row["seconds"]) == len(row["first_seconds"]) == len(row["speeds"]) == row["apps"]
        assert 0 < row["fairness"] <= 1.0001
    said = capsys.readouterr()
    assert "Jain's index" in said.out
    assert "contexts failed, what was measured is kept" in said.err
    with pytest.raises(SystemExit, match="holds another max_tokens: 6"):
        run_main("scaling", *given[:-4], "--max-tokens", "7", "--json", out)
