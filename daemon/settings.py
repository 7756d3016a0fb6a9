"""Configuration: one typed object from a TOML file, DRAFTD_* variables and command-line options."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict

from draftd.ipc.errors import InvalidConfig
from draftd.ipc.explain import explain


class Settings(BaseSettings):
    """What an operator can set; a field's description is its documentation."""

    model_config = SettingsConfigDict(env_prefix="DRAFTD_", extra="forbid", frozen=True, allow_inf_nan=False)

    endpoint: str | None = Field(
        None,
        description="where apps connect; default: draftd.sock in the runtime directory. `run`, `chat`, "
        "`status`, `top` and other apps do not read the file: give them --endpoint or DRAFTD_ENDPOINT",
    )
    pair: str = Field("smollm2", description="the pair to serve, a name from `draftd models list`")
    backend: Literal["auto", "transformers", "llama_cpp"] = Field(
        "auto", description="what runs the target; auto: what the pair says"
    )
    context: int = Field(
        4096, ge=64, le=1_048_576, description="positions a request may use, prompt and answer"
    )
    slots: int = Field(4, ge=1, le=256, description="requests that run at once")
    queue: int = Field(64, ge=0, le=10_000, description="requests that may wait beyond those that run")
    hang_seconds: float = Field(
        60.0,
        ge=0.5,
        le=86_400,
        description="what any step of the engine may take, and twenty times what its work should take, "
        "before it counts as hung and is replaced",
    )
    credit_wait: float = Field(
        60.0, gt=0, description="seconds an app may take nothing of its answer before it is cut off"
    )
    group: str | None = Field(
        None,
        description="a group whose members may enter the socket's directory and use the daemon",
    )
    allow_users: Annotated[list[str], NoDecode] = Field(
        [],
        description="users who may use the daemon (the variable: with commas between them); "
        "empty: the one it runs as, and root",
    )
    curve_key: Path | None = Field(
        None, description="the daemon's secret key file for tcp; default: the systemd credential"
    )
    curve_clients: Path | None = Field(
        None, description="a directory with the public key files of the apps that may connect over tcp"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads for each model at most; default: one a core, slow ones apart",
    )
    device: str = Field("auto", description="where the transformers target runs: auto, cpu, cuda, cuda:1 …")
    device_map: str | None = Field(
        None, description="transformers' device map for several GPUs: auto, balanced …"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="the transformers target's type"
    )
    gpu_layers: int = Field(0, ge=-1, description="layers llama.cpp puts on a GPU; -1: all")
    speculate: bool = Field(True, description="load the draft and use it")
    draft_length: int = Field(
        32, ge=1, le=256, description="tokens drafted a round at most; how many is measured"
    )
    history: bool = Field(
        True,
        description="draft from what earlier requests of the same app said; "
        "false: from a request's own text only",
    )
    share_history: bool = Field(False, description="one history for all apps")
    share_prefixes: bool = Field(
        True,
        description="start from what any app's request computed of the same prompt; "
        "false: only from what the same app's did, else one could learn from the time what another asked",
    )
    conversations_mb: int = Field(
        2000, ge=0, description="megabytes on disk for conversations that apps ask to be kept; 0: none are"
    )
    keep_alive: float = Field(
        1800.0,
        description="seconds without a request after which the models leave memory; 0: at once, -1: never",
    )
    check_memory: bool = Field(True, description="refuse to serve what does not fit in memory")
    follow_load: bool = Field(True, description="fewer threads while other programs use the cores")
    governor: bool = Field(
        True,
        description="step back when memory is short, in heat and on battery (see `draftd status`)",
    )
    memory_low: float = Field(
        5.0,
        ge=0,
        le=60,  # it steps up again at half as much more, which must be there
        description="percent of memory still available at which the governor steps down",
    )
    memory_stall: float = Field(
        10.0, gt=0, le=100, description="percent of time that programs wait for memory at which it steps down"
    )
    heat: float = Field(
        95.0,
        ge=0,
        le=200,
        description="°C of the hottest CPU or GPU sensor that the kernel lists (NVIDIA's driver has none) at "
        "which it steps down",
    )
    battery_low: float = Field(
        20.0, ge=0, le=100, description="percent of charge, on battery, at which new requests are refused"
    )
    governor_dwell: float = Field(
        5.0,
        ge=0.5,
        le=3600,
        description="seconds for each step down; a step up takes four times as long, up to 64 times after "
        "ones that had to be undone",
    )
    cache_dir: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("draftd"),
        description="models and what is made from them",
    )
    state_dir: Path = Field(
        default_factory=lambda: platformdirs.user_state_path("draftd"),
        description="what the daemon learns and keeps",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe line to log"
    )
    log_content: bool = Field(
        False, description="log prompts and answers, with addresses, numbers and keys masked"
    )
    metrics: str | None = Field(
        None,
        description="where `draftd metrics` serves: unix:/path or 127.0.0.1:port; default: metrics.sock "
        "beside the daemon's socket",
    )

    @field_validator("allow_users", mode="before")
    @classmethod
    def _by_commas(cls, given: Any) -> Any:
        """A variable is text: names with commas between them, or a list as JSON has it."""
        if not isinstance(given, str):
            return given
        if given.lstrip().startswith("["):
            return json.loads(given)
        return [name.strip() for name in given.split(",") if name.strip()]

    @field_validator("curve_key", "curve_clients", "cache_dir", "state_dir")
    @classmethod
    def _at_home(cls, path: Path | None) -> Path | None:
        """~ is the home directory, here as in a shell."""
        return path and Path(os.path.expanduser(path))


def default_config_path() -> Path:
    return platformdirs.user_config_path("draftd") / "config.toml"


def config_path(given: Path | None = None) -> tuple[Path, bool]:
    """The settings file, and whether it was named, by option or DRAFTD_CONFIG: then it must be there."""
    if given is None and (named := os.environ.get("DRAFTD_CONFIG")):
        given = Path(named)
    return given or default_config_path(), given is not None


def load(config: Path | None = None, **options: Any) -> Settings:
    """Settings from options (None: not given), then DRAFTD_*, then the file, then defaults."""
    path, named = config_path(config)
    values: dict[str, Any] = {}
    try:
        if named or path.exists():
            values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidConfig(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}") from None
    known = set(Settings.model_fields)
    if unknown := sorted(set(values) - known):
        raise InvalidConfig(f"{path}: unknown key {', '.join(unknown)}; valid: {', '.join(sorted(known))}")
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return Settings(**{**values, **EnvSettingsSource(Settings)(), **given})
    except ValidationError as error:
        raise InvalidConfig(f"wrong setting ({path}, DRAFTD_* or option): {explain(error)}") from None
