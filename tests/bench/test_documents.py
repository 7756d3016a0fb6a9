from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from draftd.ipc.errors import ModelNotFound
from tests.bench.conftest import BENCH

Program = Callable[[str], ModuleType]
Run = Callable[..., ModuleType]


def test_a_document_tells_its_command_with_the_settings_it_needs(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DTYPE": "float32", "CACHE_DIR": "/home/ada/cache", "API_KEY": "secret"}.items():
        monkeypatch.setenv(f"DRAFTD_{name}", value)
    monkeypatch.setattr(sys, "argv", ["bench/it.py", "--pair", "two words"])
    document = program("documents").begin("it", pair="tiny")
    assert document["command"].endswith("DRAFTD_DTYPE=float32 python bench/it.py --pair 'two words'")
    assert "ada" not in document["command"]
    assert "secret" not in document["command"]
    assert document["pair"] == "tiny"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ModelNotFound("there is no pair 'x'"), 4, "there is no pair 'x'\n"),
        (OSError(28, "No space left on device", "it"), 1, "[Errno 28] No space left on device: 'it'\n"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(
    program: Program, capsys: pytest.CaptureFixture[str], error: Exception, status: int, said: str
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        program("documents").run(main)
    assert ended.value.code == status
    assert capsys.readouterr().err == said


def test_a_program_ends_with_what_its_main_gives(program: Program) -> None:
    for given in (None, 0, 1):
        with pytest.raises(SystemExit) as ended:
            program("documents").run(lambda given=given: given)
        assert ended.value.code == given


def test_every_program_ends_so() -> None:
    texts = {path.stem: path.read_text("utf-8") for path in BENCH.glob("*.py")}
    programs = {name: text for name, text in texts.items() if '__name__ == "__main__"' in text}
    programs.pop("report")  # reads its own files only
    assert len(programs) == 12
    assert [name for name, text in programs.items() if not text.endswith("    documents.run(main)\n")] == []
    done = subprocess.run(
        [sys.executable, str(BENCH / "verify_modes.py"), "/nowhere/prompts.jsonl"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot read the prompts file /nowhere/prompts.jsonl" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        *("check", "hot_loop", "memory", "prefill", "roofline", "scaling", "side_by_side", "simulated_apps"),
        *("simulated_gpu", "suffix", "verify_modes"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_run(
    run_main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(name, "--json", tmp_path / "none" / "out.json")
    assert ended.value.code == 2
    assert f"argument --json: there is no directory {tmp_path}/none" in capsys.readouterr().err


def test_what_can_be_written(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_file = program("documents").new_file
    monkeypatch.chdir(tmp_path)
    assert new_file("out.json") == Path("out.json")
    with pytest.raises(argparse.ArgumentTypeError, match="is a directory"):
        new_file(str(tmp_path))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(argparse.ArgumentTypeError, match=r"out\.json can't be written"):
        new_file("out.json")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("side_by_side", "--repeat"),
        ("side_by_side", "--per-category"),
        ("memory", "--context"),
        ("simulated_gpu", "--max-tokens"),
        ("simulated_apps", "--apps"),
        ("verify_modes", "--length"),
        ("roofline", "--max-tokens"),
        ("prefill", "--repetitions"),
        ("hot_loop", "--repeat"),
        ("scaling", "--apps"),
        ("scaling", "--repeat"),
    ],
)
def test_a_count_is_at_least_one(
    run_main: Run, capsys: pytest.CaptureFixture[str], name: str, option: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_main(name, option, "0")
    assert ended.value.code == 2
    assert f"argument {option}: 0 is less than 1" in capsys.readouterr().err


def test_the_hot_loop_needs_a_token_behind_the_first(
    run_main: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main("hot_loop", "--tokens", "1")
    assert "so at least 2" in capsys.readouterr().err
