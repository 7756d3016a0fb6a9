from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from draftd.daemon.timed import Answer
from draftd.ipc import Client
from draftd.ipc.errors import ContextOverflow, EngineFailed, Unreachable
from draftd.ipc.parts import Stats

Program = Callable[[str], ModuleType]


def test_a_run_that_ended_between_two_policies_has_a_table(program: Program) -> None:
    tables = program("scaling_tables").tables
    row = {"prompt_tokens": 9, "policy": "off", "speed": 4.0, "first_seconds": 1.0}
    rows = [row, row | {"policy": "auto", "speed": 6.0}, row | {"prompt_tokens": 99}]
    table = tables({"contexts": rows}, ["contexts"])
    how = "(each length of the text goes on in another way, so compare along a line)"
    assert table[1] == f"By contexts, tokens a second {how}:", "measured once, or before there were turns"
    assert table[-2].count("-") > 0
    assert table[-1] == "| 9 | 4.00 | 6.00 | 1.50x | 1000 | 1000 |"


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


class Counting:
    """A client whose daemon counts a token for each word and each mark, and has room for so many."""

    def __init__(self, context: int) -> None:
        self.context = context

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(engine={"context": self.context})

    def complete(self, *, prompt: str, resume: dict[str, str]) -> SimpleNamespace:
        assert resume["finish_reason"], "an answer that is not over would be computed"
        if (tokens := words_and_marks(prompt)) >= self.context:
            raise ContextOverflow("too long")
        return SimpleNamespace(usage=SimpleNamespace(prompt_tokens=tokens))


def words_and_marks(text: str) -> int:
    return len(re.findall(r"\w+|\W", text))


@pytest.fixture
def scaling(program: Program, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program with a daemon of 300 tokens' context that computes nothing, on three cores."""
    module = program("scaling")
    monkeypatch.setattr(module, "daemon", lambda options, **settings: nullcontext("nowhere"))
    monkeypatch.setattr(module, "Client", lambda endpoint, name: nullcontext(Counting(300)))
    monkeypatch.setattr(module.machine, "cores", lambda: 3)
    return module


def asked(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(repeat=3, max_tokens=5, **more)


def answer(tokens_a_second: float, **more: Any) -> Answer:
    """An answer of 11 tokens, the first after as many seconds as each other takes."""
    return Answer(
        text="",
        tokens=11,
        first_tokens=1,
        first_seconds=1 / tokens_a_second,
        seconds=11 / tokens_a_second,
        finish_reason="length",
        stats=Stats.nothing(seed=1).model_copy(update={"rounds": 5, "drafted": 4, "accepted": 3}),
        **more,
    )


def test_policies_take_turns_and_none_always_begins(program: Program) -> None:
    said: list[tuple[int, str]] = []

    def measure(number: int, policy: str) -> str:
        said.append((number, policy))
        return f"{number} {policy}"

    measures = {number: partial(measure, number) for number in (1, 2, 4)}
    found = program("scaling").in_turns(20, ["off", "auto"], measures)
    assert found == {policy: [[f"{each} {policy}" for each in measures]] * 20 for policy in ("off", "auto")}
    pairs = list(zip(said[::2], said[1::2], strict=True))
    assert [first[0] for first, _ in pairs] == [second[0] for _, second in pairs] == [1, 2, 4] * 20
    for number in measures:
        assert {first for first, _ in pairs if first[0] == number} == {(number, "off"), (number, "auto")}


def test_apps_have_medians_and_each_ones_figures_of_the_middle_turn(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"off": [9.0, 1.0, 3.0] * 2, "auto": [5.0, 4.0, 8.0] * 2}
    fairness = {9.0: 0.5, 1.0: 0.7, 3.0: 0.9}

    def together(endpoint: str, count: int, max_tokens: int, policy: str) -> dict[str, Any]:
        assert (endpoint, max_tokens) == ("nowhere", 5)
        throughput = given[policy].pop(0)
        each = dict.fromkeys(("speeds", "first_seconds", "seconds"), [throughput] * count)
        index = fairness.get(throughput, 1.0)
        return {"throughput": throughput, "fairness": index, "fairness_whole": index / 2, **each}

    monkeypatch.setattr(scaling, "together", together)
    rows = list(scaling.by_apps(asked(apps=[1, 2])))
    assert [(row["apps"], row["policy"]) for row in rows] == [
        (1, "off"),
        (1, "auto"),
        (2, "off"),
        (2, "auto"),
    ]
    assert [row["throughput"] for row in rows] == [3.0, 5.0, 3.0, 5.0]
    assert [row["fairness"] for row in rows] == [0.7, 1.0, 0.7, 1.0]
    assert [row["fairness_whole"] for row in rows] == [0.35, 0.5, 0.35, 0.5]
    assert [row["speeds"] for row in rows] == [[3.0], [5.0], [3.0, 3.0], [5.0, 5.0]]
    assert [turn["throughput"] for turn in rows[0]["turns"]] == [9.0, 1.0, 3.0]
    table = scaling.tables({"apps": rows})
    assert "a question of its own, medians of 3 (each one's: of the middle turn). N apps" in table[1]
    assert table[5] == "| 1 | off | 3.0 | 0.700 | 0.350 | 3.0 | 3000 | 3.0 |"
    older = [{name: value for name, value in row.items() if name != "fairness_whole"} for row in rows]
    assert scaling.tables({"apps": older})[5] == "| 1 | off | 3.0 | 0.700 | - | 3.0 | 3000 | 3.0 |"


def test_an_app_that_fails_says_why_and_nobody_waits_for_it(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(endpoint: str, name: str) -> Any:
        if name == "app 1":
            raise Unreachable("no daemon answers here")
        return nullcontext(SimpleNamespace(ping=lambda: 0.0))

    monkeypatch.setattr(scaling, "Client", client)
    with pytest.raises(Unreachable, match="no daemon answers here"):
        scaling.together("nowhere", 3, 5, "off")


def test_lengths_and_cores_have_the_median_of_turns_over_all_questions(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds: dict[str, list[float]] = {}

    def question(client: Counting, text: str, max_tokens: int, policy: str) -> Answer:
        return answer(speeds[policy].pop(0))

    monkeypatch.setattr(scaling, "question", question)
    for policy, turns in {
        "off": (1.0, 9.0, 2.0),
        "model:4": (3.0, 2.0, 4.0),
        "auto": (5.0, 6.0, 1.0),
    }.items():
        speeds[policy] = [each for each in turns for _ in range(4)]
    rows = list(scaling.by_length(asked(lengths=[4])))
    assert [row["policy"] for row in rows] == ["off", "model:4", "auto"]
    assert [row["speed"] for row in rows] == pytest.approx([2.0, 3.0, 5.0])
    assert [row["speedup"] for row in rows] == pytest.approx([1.0, 1.5, 2.5])
    assert [row["tokens_a_pass"] for row in rows] == pytest.approx([11 / 5] * 3)
    assert [(row["accepted"], row["drafted"]) for row in rows] == [(36, 48)] * 3, "of all turns"
    assert (
        "in turns, medians of 3 (accepted of drafted: of all turns):" in scaling.tables({"lengths": rows})[1]
    )
    for policy, turns in {"off": (1.0, 9.0, 2.0), "auto": (5.0, 6.0, 1.0)}.items():
        speeds[policy] = [each for each in turns * 3 for _ in range(2)]
    rows = list(scaling.by_cores(asked()))
    assert [(row["cores"], row["policy"]) for row in rows] == [
        (cores, policy) for cores in (1, 2, 3) for policy in ("off", "auto")
    ]
    assert [row["speed"] for row in rows] == pytest.approx([2.0, 5.0] * 3)
    assert scaling.tables({"cores": rows})[1] == "By cores, tokens a second, medians of 3:"


def test_contexts_are_of_the_tokens_asked_for_and_leave_room_for_the_answer(
    scaling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"off": [1.0, 9.0, 2.0] * 2, "auto": [5.0, 6.0, 1.0] * 2}

    def continued(client: Counting, text: str, max_tokens: int, policy: str) -> Answer:
        return answer(speeds[policy].pop(0), prompt_tokens=words_and_marks(text))

    monkeypatch.setattr(scaling, "continued", continued)
    rows = list(scaling.by_context(asked(contexts=[100, 400])))
    assert [(row["context"], row["policy"], row["prompt_tokens"]) for row in rows] == [
        (context, policy, tokens)
        for context, tokens in ((100, 100), (400, 295))
        for policy in ("off", "auto")
    ]
    assert [row["speed"] for row in rows] == pytest.approx([2.0, 5.0] * 2)
    assert [row["first_seconds"] for row in rows] == pytest.approx([1 / 2, 1 / 5] * 2)
    assert (rows[0]["accepted"], rows[0]["drafted"]) == (9, 12)
    assert "By contexts, tokens a second, medians of 3 (each" in scaling.tables({"contexts": rows})[1]


@pytest.mark.parametrize("tokens", [1, 2, 99, 100, 298])
def test_a_prompt_is_the_longest_cut_of_the_text_with_so_many_tokens(
    scaling: ModuleType, tokens: int
) -> None:
    text = "Antidisestablishmentarianism, a word; and others. " * 300
    cut = scaling.prompt(Counting(300), text, tokens)
    assert text.startswith(cut)
    assert words_and_marks(cut) == tokens
    assert words_and_marks(text[: len(cut) + 1]) == tokens + 1


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

    def short(client: Client, text: str, tokens: int) -> str:
        if tokens > 64:
            raise EngineFailed("out of luck")
        return str(prompt(client, text, tokens))

    monkeypatch.setattr(program("scaling"), "prompt", short)
    given = ["--pair", "tiny", "--backend", "llama_cpp", "--max-tokens", "6", "--json", out]
    with pytest.raises(SystemExit) as ended:
        run_main("scaling", *given, "--parts", "apps", "--apps", "1", "2")
    assert not ended.value.code
    with pytest.raises(SystemExit) as ended:
        run_main("scaling", *given, "--repeat", "2", "--parts", "contexts", "--contexts", "64", "65")
    assert ended.value.code == 1
    document = json.loads(out.read_text("utf-8"))
    assert len(document["command"].splitlines()) == 2
    assert set(document["seconds"]) == {"apps", "contexts"}
    assert [(row["apps"], row["policy"]) for row in document["apps"]] == [
        (count, policy) for count in (1, 2) for policy in ("off", "auto")
    ]
    assert [row["policy"] for row in document["contexts"]] == ["off", "auto"], "of the first prompt"
    for row in document["contexts"]:
        assert 62 <= row["prompt_tokens"] <= 64, "a byte is a token, a character up to three"
        assert [turn["speed"] > 0 for turn in row["turns"]] == [True, True]
    for row in document["apps"]:
        assert len(row["seconds"]) == len(row["first_seconds"]) == len(row["speeds"]) == row["apps"]
        assert 0 < row["fairness"] <= 1.0001
        assert 0 < row["fairness_whole"] <= 1.0001
    said = capsys.readouterr()
    assert "Jain's index" in said.out
    assert "By contexts, tokens a second, medians of 2 (each" in said.out
    assert "contexts failed, what was measured is kept" in said.err
    with pytest.raises(SystemExit, match="holds another max_tokens: 6"):
        run_main("scaling", *given[:-4], "--max-tokens", "7", "--json", out)
