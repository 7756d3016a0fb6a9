"""The programs of this folder, briefly: kills of every cause, fuzzed frames, a soak."""

from __future__ import annotations

import pytest

from draftd.ipc import Client
from tests.daemon.conftest import Serve
from tests.reliability.fuzz import Fuzz, coverage_led, run
from tests.reliability.killing import CAUSES, kill_often
from tests.reliability.soak import soak
from tests.reliability.streams import questions

MIB = 2**20


def test_streams_go_on_after_every_cause_of_death(serve: Serve) -> None:
    daemon = serve(target="same.gguf", backend="llama_cpp", context="1024")
    kills = list(kill_often(daemon, len(CAUSES), questions(6, 800)))
    assert [kill.problem for kill in kills if not kill.counts] == []
    assert [case.problem for kill in kills for case in kill.cases if not case.equal] == []
    log = daemon.lines.read_text("utf-8")
    for cause in ("SIGKILL", "SIGSEGV", "SIGILL"):
        assert f"the engine was ended by {cause} and is being restarted" in log
    assert log.count("and is being restarted") == len(CAUSES)


def test_fuzzed_frames_always_get_a_reply_and_break_nothing(serve: Serve) -> None:
    fuzz = Fuzz(serve("--slots", "2", target="same.gguf", backend="llama_cpp", queue="8"))
    before = fuzz.memory()
    run(fuzz, 3000)
    front, engine = (late - early for early, late in zip(before, fuzz.memory(), strict=True))
    assert front < 128 * MIB  # frames of 16 MiB come and go, and the heap keeps room for some
    assert engine < 200 * MIB
    assert fuzz.replies["accepted"]
    assert fuzz.replies["malformed_frame"]
    assert fuzz.replies["invalid_request"]


def test_frames_led_by_coverage_raise_nothing_but_our_errors() -> None:
    pytest.importorskip("atheris")
    assert coverage_led(20_000).startswith("20000 frames")


@pytest.mark.timeout(300)
def test_a_soak_of_half_a_minute(serve: Serve) -> None:
    daemon = serve(target="same.gguf", backend="llama_cpp", queue="16")
    engine = daemon.engine().pid
    run = soak(daemon, 30.0)
    assert run.wrong == []
    assert daemon.engine().pid == engine
    assert len(run.did) >= 5, run.did
    for name, at, limit in (("front", 1, 4 * MIB), ("engine", 2, 24 * MIB)):
        late = [sample[at] for sample in run.samples if sample[0] > 10]
        assert late[-1] - late[0] < limit, (name, late)
    with Client(daemon.endpoint) as client:
        assert client.status().requests["running"] == 0
