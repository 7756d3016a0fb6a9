from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from draftd.models import probe
from draftd.models.llama_cpp import LlamaTarget
from draftd.models.probe import Probe, extra_bufts_work, run_probe, write_random_gguf

DIE = f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})"
FAIL = "import sys; print('first', file=sys.stderr); sys.exit('ValueError: nothing works')"


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Put another program in the child's place; gives the list of what was run."""

    def replace(code: str) -> list[str]:
        ran: list[str] = []
        real = subprocess.run

        def run(command: list[str], **options: Any) -> Any:
            ran.append(" ".join(command))
            return real([sys.executable, "-c", code], **options)

        monkeypatch.setattr(subprocess, "run", run)
        return ran

    return replace


def test_this_llama_cpp_survives(tmp_path: Path) -> None:
    assert run_probe() == Probe("ok")
    write_random_gguf(tmp_path / "given.gguf")
    assert run_probe(tmp_path / "given.gguf", extra_bufts=False) == Probe("ok")


def test_a_failure_of_another_kind_has_its_words(tmp_path: Path) -> None:
    outcome = run_probe(tmp_path / "gone.gguf")
    assert outcome.outcome == "failed"
    assert outcome.detail.startswith("exit status 1: draftd.ipc.errors.ModelNotFound: there is no model file")


def test_the_random_model_is_of_types_that_amx_takes(tmp_path: Path) -> None:
    write_random_gguf(tmp_path / "tiny.gguf")
    assert (tmp_path / "tiny.gguf").stat().st_size < 500_000
    target = LlamaTarget.load(tmp_path / "tiny.gguf", slots=1, context=64, threads=1)
    assert target.vocab % 32 == 0
    target.close()


def test_an_illegal_instruction(
    child: Callable[[str], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = child(DIE)
    with caplog.at_level(logging.WARNING):
        assert not extra_bufts_work(tmp_path / "state")
        assert not extra_bufts_work(tmp_path / "state")
    assert len(ran) == 1  # the second answer is the first one's
    assert [record.message[:42] for record in caplog.records] == [
        "this llama.cpp dies of an illegal instruct"
    ] * 2


def test_a_good_outcome_is_kept_too(child: Callable[[str], list[str]], tmp_path: Path) -> None:
    ran = child("")
    assert extra_bufts_work(tmp_path)
    assert extra_bufts_work(tmp_path)
    assert len(ran) == 1
    assert os.listdir(tmp_path) == ["llama-probe.json"]


def test_a_disk_that_takes_nothing_costs_a_probe_at_each_start(
    child: Callable[[str], list[str]], tmp_path: Path
) -> None:
    ran = child("")
    (tmp_path / "state").write_text("no directory")
    assert extra_bufts_work(tmp_path / "state")
    assert extra_bufts_work(tmp_path / "state")
    assert len(ran) == 2


def test_another_build_is_probed_anew(
    child: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = child("")
    assert extra_bufts_work(tmp_path)
    monkeypatch.setattr(probe, "version", lambda _: "0.0.1")
    assert extra_bufts_work(tmp_path)
    assert len(ran) == 2


def test_other_failures_are_tried_again(
    child: Callable[[str], list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran = child(FAIL)
    assert not extra_bufts_work(tmp_path)
    assert not extra_bufts_work(tmp_path)
    assert len(ran) == 2
    assert "exit status 1: ValueError: nothing works" in caplog.text


def test_a_hung_child(child: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    child("import threading; threading.Event().wait()")
    monkeypatch.setattr(probe, "_SECONDS", 0.2)
    assert run_probe() == Probe("failed", "no answer within 0 seconds")


@pytest.mark.parametrize("kept", ["", "{", "[]", json.dumps({"other": {}})])
def test_a_spoilt_file_is_written_anew(child: Callable[[str], list[str]], tmp_path: Path, kept: str) -> None:
    ran = child("")
    (tmp_path / "llama-probe.json").write_text(kept)
    assert extra_bufts_work(tmp_path)
    assert extra_bufts_work(tmp_path)
    assert len(ran) == 1
