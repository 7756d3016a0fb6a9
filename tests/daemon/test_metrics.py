"""The figures: counted right, exported right, named right in the alert rules and the dashboard."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from draftd.daemon import exporter
from draftd.daemon.counters import BOUNDS, POSITIONS, Counters, Histogram
from draftd.daemon.exporter import server
from draftd.daemon.metrics import Daemon as Collected
from draftd.daemon.metrics import families
from draftd.ipc import keys
from draftd.ipc.errors import InvalidConfig, Unreachable
from draftd.ipc.messages import Status
from tests.daemon.conftest import Daemon

ROOT = Path(__file__).parents[2]
PROMPT = "def add(a, b):"


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exported(daemon: Daemon) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    command = [sys.executable, "-m", "draftd.daemon.cli", "metrics", "--once", "--endpoint", daemon.endpoint]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return values(done.stdout)


def test_a_request_shows_in_the_figures(shared: Daemon) -> None:
    with shared.client() as client:
        before = exported(shared)
        reply = client.complete(prompt=PROMPT, max_tokens=30, speculate="model:4", cache_prompt=False)
        after = exported(shared)

    def grew(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after[key] - before.get(key, 0.0)

    assert after["draftd_up", frozenset()] == 1
    assert after["draftd_state", frozenset({("state", "ready")})] == 1
    assert grew("draftd_requests_total", outcome=reply.finish_reason) == 1
    assert grew("draftd_tokens_total", kind="completion") == reply.usage.completion_tokens
    assert grew("draftd_tokens_total", kind="prompt") == reply.usage.prompt_tokens
    assert grew("draftd_rounds_total", source="model") == reply.stats.sources["model"]
    positions = [str(position) for position in range(1, 5)]
    for name, total in (("drafted", reply.stats.drafted), ("accepted", reply.stats.accepted)):
        by_position = [
            grew(f"draftd_{name}_tokens_total", source="model", position=position) for position in positions
        ]
        assert sum(by_position) == total
        assert by_position == sorted(by_position, reverse=True)  # a later place is reached more rarely
    for phase in ("queue", "prefill", "draft", "verify", "overhead"):
        assert grew("draftd_phase_seconds_count", phase=phase) == 1
        assert grew("draftd_phase_seconds_bucket", phase=phase, le="+Inf") == 1
    assert grew("draftd_phase_seconds_sum", phase="verify") == pytest.approx(reply.stats.verify_seconds)
    assert grew("draftd_time_to_first_token_seconds_count") == 1
    resident = {
        process: after["draftd_resident_memory_bytes", frozenset({("process", process)})]
        for process in ("front", "engine")
    }
    assert resident["engine"] > 10_000_000
    assert 10_000_000 < resident["front"] < 80_000_000  # neither torch nor llama.cpp is in it
    assert after["draftd_slots_limit", frozenset()] == 2


def test_a_refused_request_is_counted_by_its_code(shared: Daemon) -> None:
    before = exported(shared)
    with shared.client() as client, pytest.raises(Exception, match="not nosuch"):
        client.complete(prompt=PROMPT, model="nosuch")
    key = ("draftd_requests_total", frozenset({("outcome", "model_not_found")}))
    assert exported(shared)[key] - before.get(key, 0.0) == 1


def test_a_full_status_shows_who_runs(shared: Daemon) -> None:
    with shared.client() as client:
        stream = client.generate(prompt=PROMPT, max_tokens=8000, ignore_eos=True)
        next(stream)
        (each,) = client.status(full=True).active
        assert each["state"] == "running"
        assert each["app"] == client.name
        assert each["tokens"] >= 1
        assert client.status().active == []  # not asked for
        stream.close()


def test_histograms_put_a_second_where_it_belongs() -> None:
    histogram = Histogram()
    for seconds in (0.0, 1.0, 1.0001, 1e9):
        histogram.add(seconds)
    counts = dict(zip([*BOUNDS, None], histogram.counts, strict=True))
    assert (counts[0.001], counts[1], counts[2.5], counts[None]) == (1, 1, 1, 1)
    assert histogram.total == pytest.approx(1e9 + 2.0001)


def test_far_positions_are_counted_together() -> None:
    counters = Counters()
    told = {"positions": {"suffix": ([3] * (POSITIONS + 4), [1] * (POSITIONS + 4))}}
    stats = {"sources": {}, "time_to_first_token": 0.1, **dict.fromkeys(PHASE_FIELDS, 0.1)}
    usage = {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
    counters.done("stop", usage, stats, {**told, "queue_seconds": 0.0, "seconds": 0.2})
    assert counters.drafted["suffix"] == [3] * POSITIONS + [12]
    assert counters.accepted["suffix"] == [1] * POSITIONS + [4]


PHASE_FIELDS = ("prefill_seconds", "draft_seconds", "verify_seconds", "overhead_seconds")


def full_status() -> Status:
    """A status in which every family has samples."""
    counters = Counters()
    counters.outcomes["stop"] += 1
    counters.restarts["crash"] += 1
    counters.reloads["applied"] += 1
    counters.drafted["model"], counters.accepted["model"] = [4, 3], [3, 1]
    counters.rounds["model"] += 4
    counters.tokens.update(prompt=10, cached=5, completion=7)
    return Status(
        id="1",
        state="ready",
        pair="tiny",
        engine={"backend": "transformers", "draft": None},
        requests={"running": 1, "waiting": 2, "finished": 3},
        counters=counters.snapshot(),
        limits={"slots": 4, "queue": 64},
        memory={"front": 1, "engine": 2},
    )


def collected(ask: Any) -> str:
    registry = CollectorRegistry()
    registry.register(Collected(ask))
    return generate_latest(registry).decode()


def test_a_daemon_that_is_down_is_a_figure_too() -> None:
    def ask() -> Status:
        raise Unreachable("no daemon answers")

    assert values(collected(ask)) == {("draftd_up", frozenset()): 0.0}


@pytest.fixture
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "unix":
        with tempfile.TemporaryDirectory() as directory:
            yield f"unix:{directory}/m.sock"
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield f"127.0.0.1:{port}"


def get(where: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("localhost" if where.startswith("unix:") else where, timeout=30)
    if where.startswith("unix:"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(where.removeprefix("unix:"))
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


@pytest.mark.parametrize("where", ["unix", "port"], indirect=True)
def test_the_exporter_answers_scrapes_and_nothing_else(where: str) -> None:
    import threading

    registry = CollectorRegistry()
    registry.register(Collected(full_status))
    with server(where, registry) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            status, text = get(where, "/metrics", {})
            assert status == 200
            assert ("draftd_up", frozenset()) in values(text)
            assert get(where, "/", {})[0] == 404
            foreign, _ = get(where, "/metrics", {"Host": "evil.example"})
            assert foreign == (200 if where.startswith("unix:") else 403)
        finally:
            listening.shutdown()
            thread.join()
    if where.startswith("unix:"):
        assert not Path(where.removeprefix("unix:")).exists()


def test_a_scraper_that_leaves_puts_no_traceback_into_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose patience is shorter than the exporter's, while the daemon does not answer."""
    registry = CollectorRegistry()
    registry.register(Collected(full_status))
    with server(f"unix:{tmp_path}/m.sock", registry) as listening:
        with socket.socket(socket.AF_UNIX) as scraper:
            scraper.connect(f"{tmp_path}/m.sock")
            scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        listening.handle_request()
    assert capsys.readouterr().err == ""


def test_over_a_unix_socket_the_exporter_makes_no_socket_of_another_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    families = []

    class Watched(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *options: Any, **named: Any) -> None:
            families.append(family)
            super().__init__(family, *options, **named)

    monkeypatch.setattr(socket, "socket", Watched)
    with server(f"unix:{tmp_path}/m.sock", CollectorRegistry()):
        assert set(families) == {socket.AF_UNIX}  # the unit's RestrictAddressFamilies


@pytest.mark.parametrize("where", ["0.0.0.0:9464", "example.org:80", "127.0.0.1", "127.0.0.1:99999999"])
def test_the_exporter_listens_on_this_machine_only(where: str) -> None:
    with pytest.raises(InvalidConfig), server(where, CollectorRegistry()):
        pass


def test_beside_a_daemon_on_tcp_the_exporter_must_be_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, secret = keys.make(tmp_path, "a")
    monkeypatch.setenv("DRAFTD_SERVER_KEY", str(public))
    monkeypatch.setenv("DRAFTD_CLIENT_KEY", str(secret))
    with pytest.raises(InvalidConfig, match="5555 has no directory to serve in: give --listen"):
        exporter.metrics(endpoint="tcp://127.0.0.1:5555")


def names() -> set[str]:
    return {sample.name for family in families(full_status()) for sample in family.samples} | {"draftd_up"}


def test_the_alert_rules_and_the_dashboard_name_metrics_that_exist() -> None:
    rules = (ROOT / "systemd" / "alerts.yml").read_text("utf-8")
    dashboard = (ROOT / "systemd" / "grafana.json").read_text("utf-8")
    shown = [
        target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel.get("targets", [])
    ]
    alerts = re.findall(r"expr: (.*)", rules)
    assert len(alerts) >= 5
    assert len(shown) >= 8
    for expression in [*alerts, *shown]:
        named = set(re.findall(r"\bdraftd_\w+", expression))
        assert named, expression
        assert named <= names(), expression
    labels = {
        label
        for family in families(full_status())
        for sample in family.samples
        for label in (*sample.labels, "job", "instance")
    }
    used = {
        label
        for each in [*alerts, *shown]
        for group in re.findall(r"by \((.*?)\)|\{(.*?)\}", each)
        for label in re.findall(r"(\w+)(?=\s*[=!~,]|$)", "".join(group))
    }
    assert used <= labels


def test_every_alert_is_explained_and_every_metric_listed() -> None:
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    rules = (ROOT / "systemd" / "alerts.yml").read_text("utf-8")
    for alert in re.findall(r"alert: (\w+)", rules):
        assert f"### {alert}\n" in page
    for family in families(full_status()):
        name = f"{family.name}_info" if family.type == "info" else family.name
        assert f"`{name}" in page, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus")
def test_prometheus_accepts_the_rules_and_the_figures() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(ROOT / "systemd" / "alerts.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = collected(full_status)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
