from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from draftd.ipc import Client
from draftd.ipc.errors import EngineFailed

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


def test_what_an_earlier_run_measured_stays_until_there_is_something_newer(
    program: Program,
    run_main: Callable[..., ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling = program("scaling")
    out = tmp_path / "out.json"

    def measured(*speeds: float) -> list[float]:
        """What the file holds after a run that measures these, then fails."""

        def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
            for speed in speeds:
                yield {"cores": 1, "policy": "off", "speed": speed}
            raise EngineFailed("out of luck")

        monkeypatch.setitem(scaling.MEASURES, "cores", rows)
        with pytest.raises(SystemExit) as ended:
            run_main("scaling", "--parts", "cores", "--json", out)
        assert ended.value.code == 1
        return [row["speed"] for row in json.loads(out.read_text("utf-8"))["cores"]]

    assert measured(1.0, 2.0) == [1.0, 2.0]
    assert measured() == [1.0, 2.0]
    assert measured(3.0) == [3.0]
    here = scaling.machine.describe()
    monkeypatch.setattr(scaling.machine, "describe", lambda: here | {"cores": 999, "python": "4"})
    with pytest.raises(SystemExit, match=r"is of another machine or other versions \(cores, python\); name"):
        run_main("scaling", "--parts", "cores", "--json", out)


@pytest.mark.usefixtures("tiny_pair")
def test_parts_are_measured_one_after_the_other_into_one_file(
    program: Program,
    run_main: Callable[..., ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    prompt = program("scaling").prompt

    def short(client: Client, words: Sequence[str], tokens: int) -> str:
        if tokens > 64:
            raise EngineFailed("out of luck")
        return str(prompt(client, words, tokens))

    monkeypatch.setattr(program("scaling"), "prompt", short)
    given = ["--pair", "tiny", "--backend", "llama_cpp", "--max-tokens", "6", "--json", out]
    with pytest.raises(SystemExit) as ended:
        run_main("scaling", *given, "--parts", "apps", "--apps", "1", "2")
    assert not ended.value.code
    with pytest.raises(SystemExit) as ended:
        run_main("scaling", *given, "--parts", "contexts", "--contexts", "64", "65")
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
