"""Options that several commands share; one that is not given (None) leaves the protocol's default."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Endpoint = Annotated[
    str | None,
    typer.Option(help="The daemon's socket, ipc:///path; default: $DRAFTD_ENDPOINT, else the user's own."),
]
System = Annotated[str | None, typer.Option(help="The system message.")]
Stats = Annotated[
    bool, typer.Option("--stats", help="After an answer, a line of how it went on standard error.")
]


def answer(
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens; default 256.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0, the default: always the likeliest token.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Choose among the K likeliest tokens; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Choose among tokens of this joint probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Leave out tokens less likely than this part of the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: less of what prompt and answer hold; default 1.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Subtracted from the logit of what the answer holds.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="Subtracted as often as the answer holds it.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=BIAS", help="Add to the logit of a token id; may be repeated."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same answer; default: a random one.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")
    ] = None,
    stop_token: Annotated[
        list[int] | None, typer.Option(help="End the answer before this token id; may be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the model's own end, to --max-tokens.")
    ] = False,
    schema: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Follow the JSON schema in this file.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Follow this regular expression.")] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Follow the grammar in this file: .gbnf, else Lark."),
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option(help="auto, off, or a source and a length (model:4); the answer is the same."),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="coupled, the default: the answer is the seed's; rejection: more drafts accepted."),
    ] = None,
) -> dict[str, Any]:
    """The fields of a request that were given; what was not has the protocol's default."""
    fields = given(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, stop=stop, stop_tokens=stop_token,
        speculate=_policy(speculate), verify=verify, grammar=_grammar(schema, regex, grammar),
    )  # fmt: skip
    if logit_bias:
        fields["logit_bias"] = dict(_bias(text) for text in logit_bias)
    if ignore_eos:
        fields["ignore_eos"] = True
    return fields


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `answer`; it gets what was given of them as `params`."""
    own = inspect.signature(command, eval_str=True)
    shared = inspect.signature(answer, eval_str=True)

    @functools.wraps(command)
    def asking(**options: Any) -> None:
        chosen = {name: options.pop(name) for name in shared.parameters}
        command(**options, params=answer(**chosen))

    parts: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        parts += shared.parameters.values() if parameter.name == "params" else [parameter]
    asking.__signature__ = own.replace(parameters=parts)  # type: ignore[attr-defined]
    asking.__annotations__ = {part.name: part.annotation for part in parts}
    return asking


def _policy(text: str | None) -> str | bool | None:
    """true and false as a request has them."""
    return text == "true" if text in ("true", "false") else text


def _grammar(schema: Path | None, regex: str | None, grammar: Path | None) -> dict[str, Any] | None:
    names = {"--schema": schema, "--regex": regex, "--grammar": grammar}
    chosen = [name for name, value in names.items() if value is not None]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{' and '.join(chosen)}: an answer follows one of them, give one")
    if schema is not None:
        return {"kind": "json_schema", "source": _read("--schema", schema)}
    if regex is not None:
        return {"kind": "regex", "source": regex}
    if grammar is not None:
        kind = "gbnf" if grammar.suffix == ".gbnf" else "lark"
        return {"kind": kind, "source": _read("--grammar", grammar)}
    return None


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{option}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{option}: {path} is not UTF-8 text") from None


def _bias(text: str) -> tuple[str, float]:
    token, _, bias = text.partition("=")
    try:
        return str(int(token)), float(bias)
    except ValueError:
        raise typer.BadParameter(
            f"--logit-bias {text}: should be a token id and a number, 151643=-5"
        ) from None


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
