"""The command line: what there is, and how errors become one line and an exit status.

A command's module is imported when the command runs, so that `draftd --help` is quick and needs no engine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from draftd.daemon.options import Endpoint
from draftd.ipc.errors import DraftdError, InvalidConfig

# name: (module, what there is a function or an app of commands, first line of its help)
ELSEWHERE = {
    "run": ("draftd.daemon.run", "run", "Ask once: stream the answer to a prompt."),
    "chat": ("draftd.daemon.chat", "chat", "Talk in the terminal, turn by turn."),
    "models": ("draftd.daemon.models_cli", "models_app", "List, fetch, verify, add and remove model pairs."),
    "cache": (
        "draftd.daemon.cache_cli",
        "cache_app",
        "What earlier requests left: history and conversations.",
    ),
    "keys": ("draftd.daemon.keys_cli", "keys_app", "Keys for apps that connect over tcp."),
    "service": ("draftd.daemon.service", "service_app", "Have systemd run the daemon."),
    "metrics": ("draftd.daemon.exporter", "metrics", "Serve the daemon's figures to Prometheus."),
    "gateway": (
        "draftd.daemon.gateway_cli",
        "gateway",
        "Answer apps that speak OpenAI's protocol, over HTTP.",
    ),
    "top": ("draftd.daemon.top", "top", "Watch requests, speeds, acceptance and memory, live."),
    "doctor": ("draftd.daemon.doctor", "doctor", "Check this machine, and say how to mend what is wrong."),
    "plan": ("draftd.daemon.plan_cli", "plan", "Say what a pair takes of this machine, and what fits."),
    "bench": ("draftd.daemon.bench", "bench", "Measure what speculation gains on your own prompts."),
}
ORDER = [
    *("serve", "run", "chat", "status", "top", "models", "cache"),
    *("keys", "service", "gateway", "metrics", "plan", "doctor", "bench"),
]


class Commands(typer.core.TyperGroup):
    """The commands of this module, and stand-ins for those elsewhere until one of them is to run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return ORDER

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        return typer.core.TyperCommand(cmd_name, help=ELSEWHERE[cmd_name][2])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name in ELSEWHERE else command, rest


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A local daemon that makes one large language model answer fast for every app on a machine.",
)


def _load(name: str) -> Any:
    module, attribute, _ = ELSEWHERE[name]
    target = getattr(importlib.import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(target)
        target = single
    command = typer.main.get_command(target)
    command.name = name
    return command


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"draftd {version('draftd')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    pair: Annotated[str | None, typer.Option(help="The pair to serve, from `draftd models list`.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings file; default: config.toml in the user's configuration.")
    ] = None,
    endpoint: Endpoint = None,
    context: Annotated[
        int | None, typer.Option(help="Positions a request may use, prompt and answer.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Requests that run at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads for each model.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="What runs the target: auto, transformers or llama_cpp.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the transformers target runs: auto, cpu, cuda …")
    ] = None,
) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C stops it."""
    from draftd.daemon import front, settings

    front.serve(
        lambda: settings.load(
            config,
            pair=pair,
            endpoint=endpoint,
            context=context,
            slots=slots,
            threads=threads,
            backend=backend,
            device=device,
        )
    )


@app.command()
def status(
    endpoint: Endpoint = None,
    pair: Annotated[
        bool, typer.Option("--pair", help="Also what was learnt of the pair: acceptance, costs, choices.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show what the daemon serves and how it is doing."""
    from draftd.ipc.client import Client

    with Client(endpoint) as client:
        now = client.status()
    if as_json:
        typer.echo(json.dumps(now.model_dump(exclude={"id", "type"}), ensure_ascii=False))
        return
    rows = {"state": now.detail if now.state == "loading" and now.detail else now.state, "pair": now.pair}
    if now.detail not in ("", now.state, rows["state"]):
        rows["detail"] = now.detail
    rows["requests"] = ", ".join(f"{count} {name}" for name, count in now.requests.items())
    if now.governor:
        why = f", since {now.governor['why']}" if now.governor["why"] else ""
        rows["giving way"] = f"{now.governor['does']}{why} (rung {now.governor['rung']} of 5)"
        rows["threads now"] = f"{now.governor['threads']}"
    rows["up"] = f"{now.uptime_seconds:.0f} s"
    rows["endpoint"] = client.endpoint
    for name, value in [*rows.items(), *_flat(now.engine)]:
        typer.echo(f"{name:<24} {value}")
    if pair:
        _show_learnt(now.learnt)


def _show_learnt(learnt: dict[str, Any]) -> None:
    """The controller's knowledge: why it drafts as it does."""
    if not learnt:
        typer.echo("\nnothing learnt yet: it is told after the first answer")
        return
    typer.echo("\ndrafted by     chosen     confidence      tried  accepted   rate")
    for row in learnt["acceptance"]:
        low, high = row["confidence"]
        typer.echo(
            f"{row['source']:<14} {row['chosen']:<10} {low:.2f} to {high:.2f} "
            f"{row['tried']:>8} {row['accepted']:>9} {row['rate']:>6.2f}"
        )
    for name, title in (
        ("target_ms", "target pass, ms by rows"),
        ("draft_ms", "draft pass, ms by tokens"),
        ("choices", "rounds drafted by"),
    ):
        typer.echo(f"{title:<26} " + ", ".join(f"{key}: {value}" for key, value in learnt[name].items()))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def main() -> None:
    """The `draftd` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark
    try:
        app(prog_name="draftd")
    except DraftdError as error:
        _fail(error.message, error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("DRAFTD_DEBUG"):
            raise
        if isinstance(error, PermissionError) and error.filename:  # the machine's, and no fault of ours
            _fail(f"no permission to use {error.filename}", InvalidConfig.exit_status)
        what = f"unexpected {type(error).__name__}: {error}"
        _fail(f"{what}; DRAFTD_DEBUG=1 shows where, and a report with that is welcome", 1)


def _fail(sentence: str, exit_status: int) -> None:
    typer.secho(f"draftd: {sentence}", fg=None if os.environ.get("NO_COLOR") else "red", err=True)
    sys.exit(exit_status)


if __name__ == "__main__":
    main()
