"""What the real daemon learnt and remembers: in its status, over a restart, until it is cleared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.daemon.conftest import Serve

PROMPT = "def add(a, b):"


def test_status_tells_what_was_learnt_and_requests_name_their_sources(serve: Serve) -> None:
    daemon = serve()
    client = daemon.client()
    assert daemon.status().learnt == {}
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 21}
    first = client.complete(**options)
    assert 0 < sum(first.stats.sources.values()) < first.stats.rounds  # the prompt's pass drafts nothing
    again = client.complete(**options, speculate="suffix:32")
    assert again.tokens == first.tokens
    assert again.stats.sources["suffix"] > 0
    for stats in (first.stats, again.stats):  # and round by round
        assert len(stats.drafted_by) == stats.rounds
        for source in ("suffix", "model", "chain"):
            assert stats.drafted_by.count(source) == stats.sources.get(source, 0)
    assert again.stats.rounds < 20, "the earlier answer is replayed as a draft"
    learnt = daemon.wait_for(lambda status: bool(status.learnt)).learnt
    assert learnt["target_ms"]["1"] > 0
    assert learnt["draft_ms"]["1"] > 0
    assert learnt["choices"]
    told = subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "status", "--pair", "--endpoint", daemon.endpoint],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()
    head = next(index for index, line in enumerate(told) if line.startswith("drafted by"))
    assert re.fullmatch(r"(model|suffix) +\w+ +\d\.\d\d to \d\.\d\d( +\d+){2} +\d\.\d\d", told[head + 1])
    for line, begins in zip(
        told[-3:], ("target pass, ms by rows", "draft pass, ms", "rounds drafted"), strict=True
    ):
        assert line.startswith(begins)
        assert ": " in line


def test_the_history_survives_a_restart_and_can_be_cleared(serve: Serve, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 22}
    first = serve().client().complete(**options)
    second = serve().client().complete(**options, speculate="suffix:32")
    assert second.tokens == first.tokens
    assert second.stats.rounds < 20
    cleared = clear_cache(tmp_path, f"ipc://{tmp_path}/nobody.sock")
    assert cleared == f"removed 1 files of {tmp_path / 'state'}; no daemon is running\n"
    third = serve().client().complete(**options, speculate="suffix:32")
    assert third.tokens == first.tokens
    assert third.stats.rounds > second.stats.rounds


def test_without_a_history_a_requests_own_text_drafts_and_nothing_is_kept(
    serve: Serve, tmp_path: Path
) -> None:
    client = serve(history="false").client()
    every_byte = list(range(256))  # so that whatever byte comes has come before
    found = client.complete(tokens=every_byte, max_tokens=40, ignore_eos=True, speculate="suffix:8")
    assert found.stats.sources["suffix"] > 0
    assert not (tmp_path / "state" / "suffix").exists()


def test_a_running_daemon_forgets_at_once(serve: Serve, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.0, "seed": 22}
    daemon = serve()
    client = daemon.client()
    client.complete(**options)
    again = client.complete(**options, speculate="suffix:32")
    assert again.stats.rounds < 20
    kept = list((tmp_path / "state" / "suffix").glob("[0-9a-f]*"))
    assert len(kept) == 1
    cleared = clear_cache(tmp_path, daemon.endpoint)
    assert cleared == "removed 1 files; the daemon forgot it\n"
    assert not kept[0].exists()
    anew = client.complete(**options, speculate="suffix:32")
    assert anew.tokens == again.tokens
    assert anew.stats.rounds > again.stats.rounds
    client.clear(learnt=True)
    assert daemon.status().learnt == {}
    last = client.complete(**options, speculate="suffix:2")
    learnt = daemon.wait_for(lambda status: bool(status.learnt)).learnt
    assert learnt["choices"] == last.stats.sources


def clear_cache(tmp_path: Path, endpoint: str) -> str:
    environment = {"DRAFTD_STATE_DIR": str(tmp_path / "state"), "DRAFTD_CONFIG": os.devnull}
    done = subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "cache", "clear", "--endpoint", endpoint],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
