"""The daemon's log-probabilities as OpenAI's older shape has them: a token's key, offsets in a stream."""

from __future__ import annotations

from draftd.daemon.gateway_answers import logprobs
from draftd.ipc.parts import Alternative, Logprob


def other(token: int, text: str, spelled: list[int], logprob: float) -> Alternative:
    return Alternative(token=token, text=text, bytes=spelled, logprob=logprob)


def test_alternatives_of_one_text_are_told_apart_by_their_bytes() -> None:
    top = [
        other(1, "\ufffd", [0xE2], -0.5),
        other(2, "\ufffd", [0x80, 0xA6], -1.0),
        other(3, "\ufffd", [0xEF, 0xBF, 0xBD], -2.0),  # the character itself
        other(4, "a", [97], -3.0),
        other(5, "a", [97], -4.0),
        other(6, "<|end|>", [], -5.0),
    ]
    found = logprobs("completion", [Logprob(token=1, text="\ufffd", bytes=[0xE2], logprob=-0.5, top=top)])
    assert found is not None
    assert found["tokens"] == ["bytes:\\xe2"]
    assert found["top_logprobs"] == [
        {"bytes:\\xe2": -0.5, "bytes:\\x80\\xa6": -1.0, "\ufffd": -2.0, "a": -3.0, "<|end|>": -5.0}
    ]


def test_offsets_go_on_where_the_chunks_before_ended() -> None:
    told = [Logprob(token=1, text=text, bytes=list(text.encode()), logprob=-1.0) for text in ("ab", "c")]
    found = logprobs("completion", told, 5)
    assert found is not None
    assert found["text_offset"] == [5, 7]
