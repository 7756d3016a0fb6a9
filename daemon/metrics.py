"""A full status as Prometheus' metric families; nothing of it is the front's work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from draftd.ipc.errors import DraftdError
from draftd.ipc.messages import Status

STATES = ("loading", "ready", "restarting", "unloaded", "failed")  # any other shows as its own label


class Daemon(Collector):
    """Asks the daemon at each scrape; one that does not answer is `draftd_up 0` and no more."""

    def __init__(self, ask: Callable[[], Status]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        try:
            status = self._ask()
        except DraftdError:
            yield _gauge("draftd_up", "Whether the daemon answered.", 0)
            return
        yield _gauge("draftd_up", "Whether the daemon answered.", 1)
        yield from families(status)


def families(status: Status) -> Iterator[Metric]:
    """Every family but draftd_up."""
    yield from _now(status)
    yield from _counted(status.counters)
    yield from _timed(status.counters)


def _now(status: Status) -> Iterator[Metric]:
    engine = status.engine
    info = InfoMetricFamily("draftd", "What is served, and with what.")
    known = {"backend", "target", "draft", "dtype"} & engine.keys()
    words = {name: str(engine[name]) for name in known if engine[name] is not None}
    info.add_metric([], {"pair": status.pair, **words})
    yield info
    state = GaugeMetricFamily("draftd_state", "1 for the state that the daemon is in.", labels=["state"])
    for name in dict.fromkeys((*STATES, status.state)):
        state.add_metric([name], float(name == status.state))
    yield state
    yield _gauge("draftd_uptime_seconds", "Since the front's start.", status.uptime_seconds)
    yield _gauge("draftd_load_progress_ratio", "How much of the models is loaded.", status.progress)
    yield _gauge("draftd_requests_running", "Requests in a slot.", status.requests.get("running", 0))
    yield _gauge("draftd_requests_waiting", "Requests in the queue.", status.requests.get("waiting", 0))
    rung = status.governor.get("rung", 0)
    yield _gauge("draftd_governor_rung", "How far it steps back for the machine; 0: not at all.", rung)
    for name, text in (("slots", "Requests that can run at once."), ("queue", "Requests that may wait.")):
        yield _gauge(f"draftd_{name}_limit", text, status.limits.get(name, 0))
    yield _labelled(
        GaugeMetricFamily, "draftd_resident_memory_bytes", "Resident memory.", "process", status.memory
    )


def _counted(counters: dict[str, Any]) -> Iterator[Metric]:
    for name, label, text in (
        ("outcomes", "outcome", "Requests ended, by finish reason or error code."),
        ("tokens", "kind", "Tokens of ended requests: prompt, cached of the prompt, completion."),
        ("rounds", "source", "Target passes that gave tokens, by who drafted."),
        ("restarts", "reason", "Engines that died or hung and were replaced."),
        ("reloads", "result", "Configuration reloads."),
    ):
        metric = {"outcomes": "requests", "restarts": "engine_restarts"}.get(name, name)
        yield _labelled(CounterMetricFamily, f"draftd_{metric}", text, label, counters.get(name, {}))
    for name, text in (
        ("drafted", "Tokens drafted, by source and place in the round (the last place: all behind it)."),
        ("accepted", "Of these, the tokens that the target agreed with."),
    ):
        family = CounterMetricFamily(f"draftd_{name}_tokens", text, labels=["source", "position"])
        for source, counts in counters.get(name, {}).items():
            for position, count in enumerate(counts, 1):
                family.add_metric([source, str(position)], count)
        yield family


def _timed(counters: dict[str, Any]) -> Iterator[Metric]:
    bounds = counters.get("bounds", [])
    phases = HistogramMetricFamily(
        "draftd_phase_seconds", "Seconds of a request by what they went to.", labels=["phase"]
    )
    for phase, histogram in counters.get("phases", {}).items():
        phases.add_metric([phase], _buckets(bounds, histogram), histogram["total"])
    yield phases
    for name, metric, text in (
        ("first_token", "time_to_first_token", "From a request's receipt to its first token."),
        ("request", "request", "From a request's receipt to its end."),
    ):
        family = HistogramMetricFamily(f"draftd_{metric}_seconds", text)
        if name in counters:
            family.add_metric([], _buckets(bounds, counters[name]), counters[name]["total"])
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    label: str,
    values: dict[str, Any],
) -> Metric:
    family = kind(name, text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _buckets(bounds: list[float], histogram: dict[str, Any]) -> list[tuple[str, float]]:
    """Prometheus' buckets add up: each holds all that is at most its bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*bounds, None], histogram["counts"], strict=True):
        total += count
        buckets.append(("+Inf" if bound is None else str(float(bound)), float(total)))
    return buckets
