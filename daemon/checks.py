"""The doctor's checks: each looks at one thing and says what it found and what to do about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from draftd.daemon import budget, machine, plan_cli
from draftd.daemon.settings import Settings, config_path, load
from draftd.ipc import endpoint
from draftd.ipc.client import Client
from draftd.ipc.errors import DraftdError, InvalidConfig, InvalidEndpoint, NotPermitted, Unreachable
from draftd.models.catalog import Model, Pair, load_catalog
from draftd.models.fetch import cached_path, is_here

State = Literal["ok", "warn", "FAIL"]
ENGINE = ("torch", "transformers", "llama-cpp-python")
INSTALL = "`pip install 'draftd[engine]'`"
SPARE = 1_000_000_000  # bytes of disk left over, less is a warning
COMPILERS = (*(f"clang++-{version}" for version in range(21, 15, -1)), "clang++", "g++")


@dataclass(frozen=True, slots=True)
class Check:
    """One line; `mend` is what to do about it, empty where nothing is wrong."""

    name: str
    state: State
    found: str
    mend: str = ""


def python() -> Check:
    return Check("Python", "ok", f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}")


def configuration(path: Path | None, pair: str | None) -> tuple[Settings, Check]:
    """The settings, and the line about them; the defaults where they are wrong."""
    try:
        settings = load(path, pair=pair)
    except InvalidConfig as error:
        fallback = Settings.model_construct(pair=pair or "smollm2")
        return fallback, Check("configuration", "FAIL", error.message, "correct it")
    where, _ = config_path(path)
    return settings, Check(
        "configuration", "ok", str(where) if os.path.exists(where) else f"defaults, there is no {where}"
    )


def socket(settings: Settings) -> Check:
    """Who answers at the endpoint; where nobody does, whether it can be bound."""
    try:
        address = endpoint.resolve(settings.endpoint)
    except InvalidEndpoint as error:
        return Check("socket", "FAIL", error.message, "set another endpoint")
    tcp = endpoint.is_tcp(address)
    if not tcp:
        path = endpoint.socket_path(address)
        if not os.path.exists(path):
            nobody = Check("socket", "ok", f"{address}, no daemon is running there")
            return _socket_directory(path.parent) or nobody
    try:
        with Client(address, timeout=2.0) as client:
            status = client.status()
    except Unreachable as error:
        if tcp:
            return Check("socket", "ok", error.message)
        if endpoint.is_held(address):
            stuck = f"{address}, a daemon holds it and does not answer"
            return Check("socket", "warn", stuck, "see its log, and restart it")
        left = f"{address}, left by a daemon that is gone; the next one replaces it"
        return _socket_directory(path.parent) or Check("socket", "ok", left)
    except DraftdError as error:
        mend = "" if tcp or isinstance(error, NotPermitted) else "restart the daemon"
        return Check("socket", "warn", f"{address}: {error.message}", mend)
    return Check(
        "socket", "ok", f"{address}, a daemon serves {status.pair} ({status.detail or status.state})"
    )


def _socket_directory(directory: Path) -> Check | None:
    """What is wrong with it as ipc/endpoint.py judges it; None: nothing."""
    if not os.path.exists(directory):
        if os.access(_existing(directory), os.W_OK | os.X_OK):
            return None
        return Check("socket", "FAIL", f"{directory} can't be made", "set another endpoint")
    found = directory.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o007:
        mend = f"run `chmod o= {directory}`"
        if mode & stat.S_ISVTX or found.st_uid != os.getuid():  # shared by many, as /tmp is
            mend = f"use a directory of its own, as in ipc://{directory / 'draftd' / 'draftd.sock'}"
        return Check("socket", "FAIL", f"everyone can enter {directory} (mode {mode:o})", mend)
    if not os.access(directory, os.W_OK | os.X_OK):
        return Check("socket", "FAIL", f"no permission to write to {directory}", "set another endpoint")
    return None


def package(name: str) -> Check:
    """Whether a library is there, and llama.cpp also whether its shared objects load."""
    version = machine.package_version(name)
    if version is None:
        return Check(name, "FAIL", "not installed", f"run {INSTALL}")
    if name == "llama-cpp-python" and not _output(sys.executable, "-P", "-c", "import llama_cpp; print(1)"):
        return Check(
            name, "FAIL", f"{version} does not load: see `python -c 'import llama_cpp'`", "build it anew"
        )
    return Check(name, "ok", version)


def compiler() -> Check:
    """What llama.cpp would be compiled with; GCC before 13 breaks AMX."""
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    if found is None:
        return Check(
            "compiler", "warn", "no C++ compiler", "install clang-16 or g++ before llama.cpp is built anew"
        )
    banner = _output(found, "--version")
    version = re.search(r"(\d+)\.\d+(\.\d+)?", banner)
    text = f"{found} {version[0] if version else ''}".strip()
    old = found == "g++" and version is not None and int(version[1]) < 13
    if old and "amx_tile" in machine.cpu()[1]:
        return Check(
            "compiler", "warn", f"{text} compiles AMX wrongly", "install clang-16 and build llama.cpp anew"
        )
    return Check("compiler", "ok", text)


def cpu() -> Check:
    name, features = machine.cpu()
    wanted = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_tile", "NEON": "asimd"}
    there = [label for label, feature in wanted.items() if feature in features]
    text = f"{name}, {machine.cores()} cores, {', '.join(there) or 'no vector extensions known'}"
    if features and not there:
        return Check("CPU", "warn", text, "models will be slow here")
    return Check("CPU", "ok", text)


def amx() -> Check:
    """Whether this llama.cpp survives a batch on this CPU, tried in a child process."""
    from draftd.models.probe import run_probe

    probe = run_probe()
    there = "with AMX" if "amx_tile" in machine.cpu()[1] else "this CPU has no AMX"
    match probe.outcome:
        case "ok":
            return Check("AMX probe", "ok", f"llama.cpp computes a batch, {there}")
        case "sigill":
            found = (
                "llama.cpp dies of an illegal instruction, so the engine goes without AMX (slower prompts)"
            )
            return Check("AMX probe", "warn", found, "build it anew with CC=clang-16 CXX=clang++-16")
        case _:
            return Check("AMX probe", "FAIL", f"llama.cpp fails: {probe.detail}", "build it anew")


def gpu() -> Check:
    """What GPU there is, and whether torch can use it."""
    listed = [line for line in _output("nvidia-smi", "-L").splitlines() if line.startswith("GPU")]
    if not listed:
        return Check("GPU", "ok", "none, the models run on the CPU")
    names = ", ".join(re.sub(r"^GPU \d+: | \(UUID.*", "", line) for line in listed)
    usable = _output(sys.executable, "-P", "-c", "import torch; print(torch.cuda.is_available())").strip()
    if usable != "True":
        mend = "install a CUDA build of torch that fits the driver"
        return Check("GPU", "warn", f"{names}, but this torch can't use it", mend)
    return Check("GPU", "ok", names)


def directories(settings: Settings) -> Check:
    """Whether the cache and state directories can be written to."""
    for directory in (settings.cache_dir, settings.state_dir):
        there = _existing(directory)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            return Check(
                "directories", "FAIL", f"no permission to write to {there}", "set cache_dir or state_dir"
            )
    return Check("directories", "ok", f"{settings.cache_dir}, {settings.state_dir}")


def pair(settings: Settings) -> Iterator[Check]:
    """The pair's files, and memory and disk against what it needs."""
    try:
        chosen = load_catalog().pair(settings.pair)
    except DraftdError as error:
        yield Check("pair", "FAIL", error.message, "see `draftd models list`")
        return
    try:
        yield from _of_pair(chosen, settings)
    except PermissionError as error:
        yield Check("pair", "FAIL", f"no permission to read {error.filename}", "set another cache_dir")


def _of_pair(chosen: Pair, settings: Settings) -> Iterator[Check]:
    for model in chosen.models:
        yield _file(model, chosen, settings)
    if len(chosen.models) > 1 and all(is_here(model, settings.cache_dir) for model in chosen.models):
        yield tokenizers(chosen, settings)
    yield _memory(chosen, settings)
    yield _disk(chosen, settings)


def _file(model: Model, chosen: Pair, settings: Settings) -> Check:
    name, path = f"model {model.name}", cached_path(model, settings.cache_dir)
    pull = f"run `draftd models pull {chosen.name}`"
    if not os.path.exists(path):
        return Check(name, "FAIL", f"there is no {path}", pull if model.path is None else "put it there")
    if not is_here(model, settings.cache_dir):
        return Check(name, "FAIL", f"{path} is not the catalog's file", pull)
    known = "SHA-256 as in the catalog" if model.sha256 else "no SHA-256 to compare with"
    return Check(name, "ok", f"{_size(_bytes(path))}, {known}")


def tokenizers(chosen: Pair, settings: Settings) -> Check:
    """How the draft's tokens reach the target."""
    assert chosen.draft is not None
    paths = [str(cached_path(model, settings.cache_dir)) for model in (chosen.draft, chosen.target)]
    found = json.loads(_output(sys.executable, "-P", "-m", "draftd.daemon.compare", *paths) or "{}")
    if "sentence" in found:
        return Check("tokenizers", "ok", found["sentence"])
    return Check(
        "tokenizers", "warn", found.get("wrong", "they can't be compared"), "the target will run alone"
    )


def _memory(chosen: Pair, settings: Settings) -> Check:
    room = budget.measure_room(settings)
    try:
        asked = budget.asked(chosen, settings, room)
        better = budget.best(chosen, settings, room)
    except DraftdError as error:
        return Check("memory", "FAIL", error.message, f"run `draftd models pull {chosen.name}`")
    needs = "more than" if budget.missing(chosen, settings) else "about"
    text = f"{_size(room.memory)} available, {chosen.name} needs {needs} {_size(asked[-1].memory)}"
    if not any(each.fits(room) for each in asked):
        taken = plan_cli.held(settings)
        if asked[-1].memory <= room.memory + taken:
            return Check("memory", "ok", f"{text}; the daemon that runs here holds {_size(taken)}")
        mend = f"serve with {budget.options(better)}" if better else "choose a smaller pair"
        return Check("memory", "warn", f"{text}: see `draftd plan`", mend)
    return Check("memory", "ok", text)


def _disk(chosen: Pair, settings: Settings) -> Check:
    directory = _existing(settings.cache_dir)
    free = shutil.disk_usage(directory).free
    missing = [model for model in chosen.models if not os.path.exists(cached_path(model, settings.cache_dir))]
    # a download is kept in parts and then joined: twice its size for a moment
    need = sum(2 * (model.size or 0) for model in missing)
    if chosen.target in missing and _backend(chosen, settings) == "transformers":
        need += budget.weights(chosen.target, settings, "transformers")  # it is converted
    text = f"{_size(free)} free in {directory}" + (f", {_size(need)} still to come" if need else "")
    mend = "free some, or set cache_dir to another disk"
    if need > free:
        return Check("disk", "FAIL", text, mend)
    if need + SPARE > free:
        return Check("disk", "warn", text, mend)
    return Check("disk", "ok", text)


def _backend(chosen: Pair, settings: Settings) -> str:
    """What runs the target; where that is measured, transformers, which needs more."""
    backend = settings.backend if settings.backend != "auto" else chosen.backend
    return "llama_cpp" if backend == "llama_cpp" else "transformers"


def _existing(path: Path) -> Path:
    """The path, or the nearest parent that exists; below a directory closed to us pathlib would raise."""
    return next(part for part in (path, *path.absolute().parents) if os.path.exists(part))


def _bytes(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _output(*command: str) -> str:
    """What a command prints, empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
