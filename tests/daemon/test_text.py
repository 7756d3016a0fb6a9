"""Text held back for stop strings, whatever pieces it arrives in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draftd.daemon.text import Answer


class Letters:
    """A stream whose tokens are code points."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


def run(text: str, stops: list[str]) -> tuple[list[str], bool]:
    answer = Answer(Letters(), stops)
    released = []
    for character in text:
        released.append(answer.push(ord(character)))
        if answer.stopped:
            return released, True
    released.append(answer.flush())
    return released, False


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    released, stopped = run(text, stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if ends:
        seen = text[: min(ends)]
        assert "".join(released) == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
    else:
        assert "".join(released) == text


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_released_is_ever_part_of_a_stop_string(text: str, stops: list[str]) -> None:
    released, _ = run(text, stops)
    assert not any(stop in "".join(released) for stop in stops)


def test_text_is_not_held_longer_than_needed() -> None:
    answer = Answer(Letters(), ["\n\n"])
    assert [answer.push(ord(c)) for c in "a\nb\n"] == ["a", "", "\nb", ""]
    assert answer.flush() == "\n"


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.integers(0, 20),
)
def test_an_answer_resumed_anywhere_repeats_and_loses_nothing(text: str, stops: list[str], cut: int) -> None:
    released, stopped = run(text, stops)
    sent = "".join(released[:cut])
    tokens = [ord(character) for character in text[:cut]]  # a cut behind the end: only `done` was lost
    answer = Answer(Letters(), stops)
    answer.resume(tokens, len(sent))
    rest = ""
    for character in text[cut:]:
        if answer.stopped:
            break
        rest += answer.push(ord(character))
    rest += answer.flush()
    assert sent + rest == "".join(released)
    assert answer.stopped == stopped
