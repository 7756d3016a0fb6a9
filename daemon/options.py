"""Options that several commands share; one that is not given (None) leaves the protocol's default."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Endpoint = Annotated[
    str | None,
    typer.Option(help="The daemon's socket, ipc:///path; default: $DRAFTD_ENDPOINT, else the user's own."),
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens; default 256.")]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="0, the default: always the likeliest token.")
]
TopK = Annotated[int | None, typer.Option(min=0, help="Choose among the K likeliest tokens; 0: all.")]
TopP = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Choose among tokens of this joint probability.")
]
MinP = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Leave out tokens less likely than this part of the likeliest."),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="The same seed gives the same answer; default: a random one.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")]
System = Annotated[str | None, typer.Option(help="The system message.")]
Speculate = Annotated[
    bool, typer.Option(help="Draft with the small model; the answer is the same either way.")
]
Stats = Annotated[
    bool, typer.Option("--stats", help="After an answer, a line of how it went on standard error.")
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
