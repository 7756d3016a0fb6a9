"""The bench against real daemons over tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from draftd.daemon import bench
from draftd.daemon.private import STEADY, private_daemon
from draftd.daemon.settings import load
from draftd.ipc import Client
from draftd.ipc.errors import EngineFailed
from draftd.ipc.messages import Status
from tests.daemon.commands import started_daemons
from tests.daemon.conftest import Serve


def run(*options: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "draftd.daemon.cli", "bench", *map(str, options)],
        env=os.environ | {"COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"question_id": number, "category": category, "turns": [f"say {number}"]}
        for number, category in enumerate(["writing", "coding", "writing", "writing"])
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_run_against_a_daemon(serve: Serve, prompts: Path, tmp_path: Path) -> None:
    daemon = serve(draft="same.gguf")
    daemon.client().unload()  # as after half an hour without a request
    out = tmp_path / "out.json"
    done = run(
        "--endpoint", daemon.endpoint, "--prompts", prompts, "--per-category", "2", "--max-tokens", "24",
        "--speculate", "model:8", "--speculate", "auto", "--again", "--repeat", "2", "--ping", "50",
        "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "geometric mean of 2" in done.stdout
    assert "same text with and without drafting: 3 of 3 prompts\n" in done.stdout
    assert "ping over 50: " in done.stdout
    report = json.loads(out.read_text("utf-8"))
    assert (report["pair"], report["engine"]["backend"]) == ("tiny", "transformers")
    assert report["command"].startswith("draftd bench --endpoint")
    assert [(row["name"], row["prompts"]) for row in report["categories"]] == [("writing", 2), ("coding", 1)]
    assert [result["question_id"] for result in report["results"]] == ["0", "1", "2"]
    for result in report["results"]:
        drafted, plain = result["drafted"], result["plain"]
        assert drafted["text"] == plain["text"]
        # The draft is the target; its caches' 16 bits may flip a near tie.
        assert drafted["stats"]["accepted"] > drafted["stats"]["drafted"] / 2 > 0
        assert plain["stats"]["drafted"] == 0
        assert drafted["tokens"] == plain["tokens"]
        assert drafted["stats"]["rounds"] < plain["stats"]["rounds"] == plain["tokens"]
    assert list(report["policies"]) == ["model:8", "auto", "again"]
    assert "auto / best fixed" in done.stdout
    assert report["ping"]["count"] == 50
    assert report["ping"]["ratio"] > 0


def test_a_policy_that_is_none(prompts: Path) -> None:
    done = run("--prompts", prompts, "--speculate", "oracle:4")
    assert done.returncode == 2
    assert "--speculate oracle:4: give auto, or suffix, model or chain with a length" in done.stderr


@pytest.fixture
def own_pair(tmp_path: Path, tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair `tiny` in this process's environment, which a daemon inherits."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        f'[models.target]\npath = "{tiny_files}/same.gguf"\n'
        f'[models.draft]\npath = "{tiny_files}/draft.gguf"\n'
        '[pairs.tiny]\ntarget = "target"\ndraft = "draft"\nbackend = "llama_cpp"\n'
    )
    settings = {"CATALOG": catalog, "CONFIG": os.devnull, "CACHE_DIR": tmp_path, "STATE_DIR": tmp_path}
    for name, value in {**settings, "DTYPE": "float32", "CONTEXT": "512", "THREADS": "1"}.items():
        monkeypatch.setenv(f"DRAFTD_{name}", str(value))


@pytest.mark.usefixtures("own_pair")
def test_a_private_daemon_serves_and_is_gone_afterwards() -> None:
    heard: list[Status] = []
    with private_daemon("tiny", heard.append) as endpoint, Client(endpoint) as client:
        reply = client.complete(prompt="x", max_tokens=3)
        children = psutil.Process().children(recursive=True)
        directory = Path(endpoint.removeprefix("ipc://")).parent
        assert directory.exists()
    assert len(reply.tokens) <= 3
    assert heard[-1].state == "ready"
    assert len(children) >= 2  # front and engine
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running()]
    assert not directory.exists()


@pytest.mark.usefixtures("own_pair")
def test_a_private_daemons_models_stay_whatever_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTD_KEEP_ALIVE", "0")
    with private_daemon("tiny", lambda status: None) as endpoint, Client(endpoint) as client:
        client.complete(prompt="x", max_tokens=1)
        assert client.status().state == "ready"


@pytest.mark.usefixtures("own_pair")
def test_what_a_private_daemons_log_has_of_its_faults_is_told(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.touch()

    def ask(endpoint: str) -> None:
        log = Path(endpoint.removeprefix("ipc://")).with_name("log")
        config.write_text("nonsense = 1")
        (daemon,) = psutil.Process().children()
        daemon.send_signal(signal.SIGHUP)
        end = time.monotonic() + 30
        while "refused" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.05)
        raise EngineFailed("asked in vain")

    told = r"asked in vain; its log has: ERROR draftd\.front: reload refused, "
    with (
        pytest.raises(EngineFailed, match=told),
        private_daemon("tiny", lambda status: None, config) as endpoint,
    ):
        ask(endpoint)


@pytest.mark.usefixtures("own_pair")
def test_a_private_daemon_answers_who_started_it_whomever_the_users_own_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRAFTD_ALLOW_USERS", "12345")
    with private_daemon("tiny", lambda status: None) as endpoint, Client(endpoint) as client:
        assert client.status().state == "ready"


@pytest.mark.usefixtures("own_pair")
def test_a_private_daemon_ends_with_a_program_that_is_told_to() -> None:
    program = (
        "import signal\nfrom draftd.daemon.private import private_daemon\n"
        "with private_daemon('tiny', lambda status: None):\n"
        "    print('ready', flush=True)\n    signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        children = psutil.Process(child.pid).children(recursive=True)
        child.terminate()
        assert child.wait(60) == 128 + 15
    psutil.wait_procs(children, timeout=20)
    assert len(children) >= 2
    assert not [each for each in children if each.is_running()]


@pytest.mark.usefixtures("own_pair")
def test_a_bench_with_a_daemon_of_its_own(prompts: Path) -> None:
    done = run("--pair", "tiny", "--prompts", prompts, "--per-category", "1", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "geometric mean of 2" in done.stdout


@pytest.mark.usefixtures("own_pair")
def test_a_private_daemon_that_can_not_start_says_why() -> None:
    with (
        pytest.raises(EngineFailed, match=r"ended with status 4: draftd: there is no pair 'nothing'"),
        private_daemon("nothing", lambda status: None),
    ):
        pass


@pytest.mark.usefixtures("own_pair")
def test_a_pair_that_is_not_here_ends_it_as_any_command(prompts: Path) -> None:
    unknown = run("--pair", "nothing", "--prompts", prompts)
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (4, 1)
    assert unknown.stderr.startswith("draftd: there is no pair 'nothing'")
    missing = run("--pair", "smollm2", "--prompts", prompts)
    assert missing.returncode == 4
    assert "run `draftd models pull smollm2`" in missing.stderr


@pytest.mark.usefixtures("own_pair")
def test_its_own_daemon_is_steady_and_has_learnt_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = started_daemons(monkeypatch, bench)
    with bench._daemon(None, "tiny", None, Console(stderr=True)) as where:
        assert where == "ipc://here"
    assert heard == [("tiny", STEADY, True)]
    for name, value in STEADY.items():
        monkeypatch.setenv(name, value)
    settings = load(None)
    assert (settings.follow_load, settings.governor) == (False, False)


def test_errors_are_one_sentence(tmp_path: Path, prompts: Path) -> None:
    missing = run("--prompts", tmp_path / "none.jsonl")
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"draftd: cannot read the prompts file {tmp_path}/none.jsonl")
    assert len(missing.stderr.splitlines()) == 1
    nowhere = run("--prompts", prompts, "--endpoint", f"ipc://{tmp_path}/none.sock")
    assert nowhere.returncode == 3
    assert len(nowhere.stderr.splitlines()) == 1
    unwritable = run("--prompts", prompts, "--json", tmp_path / "no" / "out.json")
    assert unwritable.returncode == 2
    assert "there is no directory" in unwritable.stderr
    folder = run("--prompts", prompts, "--json", tmp_path)
    assert folder.returncode == 2
    assert f"--json: {tmp_path} is a directory" in folder.stderr
