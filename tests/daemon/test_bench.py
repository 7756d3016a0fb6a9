from __future__ import annotations

import io
import json
import math
import os

import pytest
from rich.console import Console

from draftd.daemon import bench, bench_ping, bench_table, machine
from draftd.daemon.bench_table import CONVERSATION, SPEC_BENCH, Result
from draftd.daemon.timed import SENTENCE, Answer
from draftd.ipc.messages import Status
from draftd.ipc.parts import Stats


def answer(
    text: str = "x",
    tokens: int = 11,
    seconds: float = 2.0,
    first: float = 1.0,
    rounds: int = 11,
    drafted: int = 0,
    accepted: int = 0,
    models: float = 1.8,
    overhead: float = 0.1,
    finish: str = "length",
) -> Answer:
    stats = Stats(
        seed=1,
        rounds=rounds,
        drafted=drafted,
        accepted=accepted,
        accepted_by_position=[accepted],
        draft_seconds=models / 4,
        verify_seconds=models / 2,
        prefill_seconds=models / 4,
        overhead_seconds=overhead,
        time_to_first_token=first,
        tokens_per_second=0.0,
    )
    return Answer(text, tokens, 1, first, seconds, finish, stats)


def result(category: str = "coding", drafted: Answer | None = None, plain: Answer | None = None) -> Result:
    drafted = drafted or answer()
    plain = plain or answer()
    return Result("1", category, drafted, plain, drafted.text == plain.text)


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("It is 3.5 m", False),
        ("It is 3.5 m.", False),
        ("It is 3.5 m. A", True),
        ("Title\n", True),
        ("雨从云中落下", False),
        ("雨从云中落下。然后", True),
    ],
)
def test_where_the_first_sentence_ends(text: str, ended: bool) -> None:
    assert bool(SENTENCE.search(text)) == ended


def test_a_speed_is_all_tokens_over_all_seconds_after_the_first() -> None:
    # 10 tokens in 1 s and 30 in 7 s: 40 in 8, not the mean of 10 and 4.3
    assert bench_table.speed([answer(), answer(tokens=31, seconds=8.0)]) == pytest.approx(5.0)


def test_a_row_by_hand() -> None:
    row = bench_table.row(
        "coding",
        [
            result(
                drafted=answer(seconds=1.5, first=1.0, rounds=4, drafted=12, accepted=7, finish="stop"),
                plain=answer(seconds=3.0, first=1.0),
            ),
            result(
                drafted=answer("y", seconds=2.5, first=2.0, rounds=7, drafted=8, accepted=4),
                plain=answer(seconds=5.0, first=3.0),
            ),
        ],
    )
    assert row.plain_speed == pytest.approx(20 / 4)
    assert row.drafted_speed == pytest.approx(20 / 1)
    assert row.speedup == pytest.approx(4.0)
    assert row.accepted_length == pytest.approx(23 / 11)  # the token that ended the first counts too
    assert (row.drafted, row.accepted) == (20, 11)
    assert [row.plain_first, row.drafted_first] == pytest.approx([2.0, 1.5])
    assert (row.same_text, row.prompts) == (1, 2)
    assert bench_table.row("coding", [result(), result()]).same_text == 2


def test_how_far_the_target_alone_is_from_itself() -> None:
    turns = [answer(seconds=seconds) for seconds in (3.0, 2.0, 6.0)]  # 5, 10 and 2 tokens a second
    measured = [bench_table.Measured("1", "qa", {"off": turns})]
    assert bench_table.plain_ranges(measured) == {"qa": pytest.approx((0.4, 2.0))}
    other = [answer(seconds=seconds) for seconds in (2.0, 2.0, 2.0)]
    both = [*measured, bench_table.Measured("2", "qa", {"off": other})]
    # 20 tokens in 2 + 1 seconds count; the turns took 3, 2 and 6
    assert bench_table.plain_ranges(both) == {"qa": pytest.approx((3 / 6, 3 / 2))}
    short = answer(tokens=1, seconds=1.0, first=1.0)
    assert bench_table.plain_ranges([bench_table.Measured("3", "rag", {"off": [short]})]) == {}


def test_one_token_answers_have_no_speed_and_leave_the_mean_alone() -> None:
    short = answer(tokens=1, seconds=1.0, first=1.0)
    row = bench_table.row("qa", [result("qa", short, short)])
    assert math.isnan(row.speedup)
    assert bench_table.geometric_mean([row.speedup, 4.0, 1.0]) == pytest.approx(2.0)
    assert math.isnan(bench_table.geometric_mean([math.nan]))


def test_groups_only_for_the_whole_of_spec_bench() -> None:
    whole = [result(category) for category in sorted(CONVERSATION | SPEC_BENCH)]
    groups = {row.name: row.prompts for row in bench_table.by_group(whole)}
    assert groups == {"conversation": 8} | dict.fromkeys(SPEC_BENCH, 1)
    assert bench_table.by_group(whole[1:]) == []


def test_overhead_is_what_the_models_did_not_take() -> None:
    results = [result(), result()]  # four answers of 2.0 s, of which the models took 1.8 and the engine 0.1
    assert bench_table.engine_overhead(results) == pytest.approx(0.1 / 1.8)
    assert bench_table.whole_overhead(results) == pytest.approx(0.2 / 1.8)


def test_the_table_shows_losers_and_ends_with_the_geometric_mean() -> None:
    slow, fast = answer(seconds=3.0), answer(seconds=1.25)
    results = [result("writing", drafted=slow), result("coding", drafted=fast)]
    console = Console(file=io.StringIO(), width=200)
    console.print(bench_table.table(results))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "0.50x" in text
    assert "4.00x" in text
    last = [line for line in text.splitlines() if "x" in line][-1]
    assert "geometric mean of 2" in last
    assert "1.41x" in last


def test_ping_report() -> None:
    daemon = [float(value) for value in range(1, 201)]
    assert bench_ping.p99(daemon) == 198.0
    assert bench_ping.p99([3.0]) == 3.0
    report = bench_ping.report(daemon, [50.25] * 200, [25.0] * 200)
    assert report.unix_median == 25.0
    assert report.ratio == pytest.approx(2.0)


def test_the_document_is_json_even_where_nothing_could_be_measured() -> None:
    short = answer(tokens=1, seconds=1.0, first=1.0, models=0.0)
    status = Status(id="1", state="ready", pair="tiny")
    made = bench.document(status, bench.Sampling(8, 0.0, 1), {"auto": [result("qa", short, short)]}, 1, None)
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text)["geometric_mean_speedup"] is None
    assert json.loads(text)["results"][0]["drafted"]["stats"]["rounds"] == 11


def test_repeated_answers_count_by_their_median() -> None:
    answers = {"auto": [answer(seconds=3.0), answer(seconds=1.5), answer(seconds=2.0)], "off": [answer()]}
    (only,) = bench_table.results([bench_table.Measured("1", "coding", answers)], "auto")
    assert (only.drafted.seconds, only.plain.seconds) == (2.0, 2.0)


def test_a_text_is_the_same_if_every_repeated_answer_has_it() -> None:
    def same(drafted: str, plain: str) -> bool:
        """Answers of these texts; the median is the second of three."""
        turns = {
            "auto": [answer(text, seconds=1.0 + number) for number, text in enumerate(drafted, 1)],
            "off": [answer(text, seconds=1.0 + number) for number, text in enumerate(plain, 1)],
        }
        (only,) = bench_table.results([bench_table.Measured("1", "coding", turns)], "auto")
        return only.same_text

    assert same("xxx", "xxx")
    assert not same("xxy", "xxx")
    assert not same("xxx", "yxx")


def test_policies_are_compared_with_the_best_fixed_one() -> None:
    by_policy = {
        "auto": [result("coding", answer(seconds=1.5)), result("writing", answer(seconds=2.25))],
        "model:4": [
            result("coding", answer(seconds=1.25)),
            result("writing", answer(seconds=3.0)),
        ],  # 4x
        "suffix:8": [result("coding", answer()), result("writing", answer(seconds=2.25))],
    }
    console = Console(file=io.StringIO(), width=100)
    console.print(bench_table.policies_table(by_policy))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1:] for line in lines if line.strip().startswith(("coding", "writing"))] == [
        ["2.00x", "4.00x", "1.00x", "0.50"],
        ["0.80x", "0.50x", "0.80x", "0.80"],  # the best of writing is to draft nothing
    ]


def test_the_command_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DRAFTD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DRAFTD_BACKEND", "llama_cpp")
    monkeypatch.setenv("DRAFTD_CACHE_DIR", "/somebody's/own")
    monkeypatch.setattr("sys.argv", ["/bin/draftd", "bench", "--prompts", "two words.jsonl"])
    assert machine.command() == "DRAFTD_BACKEND=llama_cpp draftd bench --prompts 'two words.jsonl'"
