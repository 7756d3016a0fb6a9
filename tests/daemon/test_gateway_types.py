"""Values that some of OpenAI's clients send and a `generate` message has no place for."""

from __future__ import annotations

from draftd.daemon.gateway_types import Completion, generate
from draftd.ipc.messages import Generate


def test_no_nucleus_is_the_likeliest_token() -> None:
    found = generate(Completion(prompt="x", top_p=0, temperature=0.7), 16)
    assert (found["temperature"], found["top_p"]) == (0.0, 1.0)
    Generate(id="1", **found)


def test_a_top_k_of_minus_one_is_all() -> None:
    found = generate(Completion(prompt="x", top_k=-1), 16)
    assert found["top_k"] == 0
    Generate(id="1", **found)
