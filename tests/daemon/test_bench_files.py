from __future__ import annotations

import json
from pathlib import Path

import pytest

from draftd.daemon import bench_files
from draftd.ipc.errors import InvalidRequest


def test_prompts_by_category(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"question_id": n, "category": "ab"[n % 2], "turns": [f"q{n}", "later"]} for n in range(6)]
    path.write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    assert [prompt.question_id for prompt in bench_files.read_prompts(path, None)] == list(range(6))
    assert [prompt.turns[0] for prompt in bench_files.read_prompts(path, 2)] == ["q0", "q1", "q2", "q3"]


def test_a_prompt_may_hold_what_ends_a_line_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    turns = [f"one{mark}two" for mark in "\u2028\u2029\x85"]
    line = json.dumps({"question_id": 1, "category": "a", "turns": turns}, ensure_ascii=False)
    path.write_bytes(f"{line}\r\n".encode())
    (prompt,) = bench_files.read_prompts(path, None)
    assert prompt.turns == turns


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"question_id": 1, "category": "a", "turns": ["q"]}\n{"question_id": 2}\n', "line 2: category: "),
        (b'{"question_id": 1, "category": "a", "turns": []}', "line 1: turns: "),
        (b"not json\n", "line 1: "),
        (b"\n\n", "holds no prompt"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_bad_prompts_file_is_named_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest) as raised:
        bench_files.read_prompts(path, None)
    assert str(path) in raised.value.message
    assert said in raised.value.message
    assert "\n" not in raised.value.message


def test_a_missing_prompts_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read the prompts file .*No such file"):
        bench_files.read_prompts(tmp_path / "none.jsonl", None)


def test_why_a_file_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    assert bench_files.unwritable(out) == ""
    assert not out.exists()
    assert bench_files.unwritable(out / "in.json") == f"there is no directory {out}"
    assert bench_files.unwritable(tmp_path) == f"{tmp_path} is a directory"
    asked: list[Path] = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append(path))
    assert bench_files.unwritable(out) == f"{out} can't be written"
    bench_files.write(out, {"ü": 1})
    assert json.loads(out.read_text("utf-8")) == {"ü": 1}
    assert bench_files.unwritable(out) == f"{out} can't be written"
    assert asked == [tmp_path, out]


def test_a_relative_path_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench_files.unwritable(Path("out.json")) == ""
    assert bench_files.unwritable(Path("no/out.json")) == f"there is no directory {tmp_path}/no"
