"""SIGHUP: read the configuration again, refuse a wrong one, keep the models where theirs did not change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from draftd.daemon import logs
from draftd.daemon.jobs import Jobs
from draftd.daemon.lifecycle import Lifecycle
from draftd.daemon.settings import Settings
from draftd.ipc.errors import Cancelled, DraftdError, InvalidConfig, ModelNotFound

log = logging.getLogger("draftd.front")

Again = Callable[[], Settings]  # reads file, environment and options anew

FRONT_ONLY = {  # not the engine's, or it is told
    *("queue", "credit_wait", "share_history", "share_prefixes", "log_level", "log_content", "metrics"),
    *("keep_alive", "check_memory", "follow_load", "governor", "governor_dwell"),
    *("memory_low", "memory_stall", "heat", "battery_low"),
}
# decided once, when the daemon takes its socket and its files
FIXED = {"endpoint", "group", "allow_users", "curve_key", "curve_clients", "state_dir", "cache_dir"}
# What an answer is made with; in llama.cpp the context decides which of its rotary factors a model takes.
ANSWERS = {"pair", "backend", "dtype", "device", "device_map", "gpu_layers", "context"}


class Reload:
    """Takes the running daemon from one configuration to another, or leaves it where it was."""

    def __init__(self, again: Again, jobs: Jobs, life: Lifecycle, adopt: Callable[[Settings], None]) -> None:
        self._again = again
        self._jobs = jobs
        self._life = life
        self._adopt = adopt  # tells the front
        # While others are tried: the last that the models did load with, and what the next engine is told.
        self._loads: tuple[Settings, dict[str, Any]]

    def run(self, old: Settings) -> None:
        """Read it and apply it; a wrong one is refused, in the log and in the counters."""
        try:
            new = read_again(old, self._again)
        except DraftdError as error:
            self._refused(error)
            return
        names = changed(old, new)
        if self._life.fall_back is None:  # else the old one is tried, too
            self._loads = old, self._life.engine.load
        good, told = self._loads
        other = changed(good, new) - FRONT_ONLY
        self._jobs.counters.reloads["applied"] += 1
        log.info("configuration read again%s", logs.fields(changed=",".join(sorted(names)) or "nothing"))
        self._apply(new, names, None if other else told)
        if names - FRONT_ONLY:
            self._life.fall_back = (lambda error: self._back(new, error)) if other else None

    def _apply(self, settings: Settings, names: set[str], told: dict[str, Any] | None) -> None:
        """`told`: what an engine with these was told first; if it was ready they are not judged again."""
        self._adopt(settings)
        logs.set_up(settings.log_level, settings.log_content)
        if names & ANSWERS:
            self._jobs.fail_all(Cancelled("the daemon's configuration has changed: ask again"))
        load = first_message(settings)
        if names - FRONT_ONLY:
            if told is not None:
                load["settings"]["check_memory"] &= told["settings"]["check_memory"]
                load["ran"] = told["ran"]
            elif len(self._jobs):  # they go on there, with what their answers were begun with
                load["ran"] = self._life.engine.load["ran"]
            self._life.replace(load, settings.pair)
        else:
            self._life.keep(load["settings"], names)

    def _back(self, new: Settings, error: DraftdError) -> None:
        """The models of the new configuration can't be loaded."""
        old, told = self._loads
        self._refused(error)
        self._life.fall_back = None
        if new.pair != old.pair:  # what is loaded instead is not what was asked for
            self._life.load_failed(error)
        self._apply(old, changed(new, old), told)

    def _refused(self, error: DraftdError) -> None:
        self._jobs.counters.reloads["refused"] += 1
        log.error("reload refused, the old configuration stays: %s", error.message)


def read_again(old: Settings, again: Again) -> Settings:
    """The new settings, as far as they can be judged without loading; DraftdError says what is wrong."""
    new = again()
    if fixed := sorted(changed(old, new) & FIXED):
        raise InvalidConfig(f"{', '.join(fixed)} can't change while the daemon runs: restart it")
    if new.pair != old.pair:
        from draftd.models.catalog import (
            load_catalog,
        )  # with what it needs, memory that the front rarely does
        from draftd.models.fetch import is_here

        for model in load_catalog().pair(new.pair).models:
            try:
                here = model.path is not None or is_here(model, new.cache_dir)
            except OSError as error:
                raise InvalidConfig(f"cannot read {model.name}: {error.strerror}") from None
            if not here:
                raise ModelNotFound(
                    f"{model.name} is not on this machine: run `draftd models pull {new.pair}`"
                )
    return new


def changed(old: Settings, new: Settings) -> set[str]:
    """The names of the settings that differ."""
    return {name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)}


def first_message(settings: Settings) -> dict[str, Any]:
    """What an engine is told first; `ran`: the backend of the one before, if it was ready."""
    return {"settings": settings.model_dump(mode="json"), "ran": None}
