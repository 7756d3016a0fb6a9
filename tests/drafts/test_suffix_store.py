"""The suffix draft's files: nothing that happens to them may cost an answer."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftd.drafts.suffix import SuffixDraft
from draftd.drafts.suffix_store import FOLDER, HEADER, LOCK, Piece, SuffixStore, clear, encode


def piece(*tokens: int) -> Piece:
    return Piece(array("I", tokens), len(tokens), bytes(16))


def files(state: Path) -> list[Path]:
    return sorted(path for path in (state / FOLDER).iterdir() if path.name != LOCK)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


PIECES = [piece(1, 2, 3), piece(2**32 - 3), piece(*range(50))]


@pytest.fixture
def store(tmp_path: Path) -> SuffixStore:
    return SuffixStore(tmp_path, "tokenizer")


@pytest.fixture
def filled(store: SuffixStore) -> SuffixStore:
    for each in PIECES:
        store.append("me", each)
    return store


def test_gives_back_what_was_appended(filled: SuffixStore, tmp_path: Path) -> None:
    assert filled.load("me") == PIECES
    assert SuffixStore(tmp_path, "tokenizer").load("me") == PIECES
    assert SuffixStore(tmp_path, "tokenizer").load("you") == []
    assert SuffixStore(tmp_path, "another").load("me") == []


@given(st.lists(st.lists(st.integers(0, 2**32 - 3), min_size=1, max_size=20)), st.text(max_size=5))
@settings(max_examples=30)
def test_any_piece_survives(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]], scope: str
) -> None:
    state = tmp_path_factory.mktemp("state")
    pieces = [Piece(array("I", tokens), 7, bytes(range(16))) for tokens in lists]
    for each in pieces:
        SuffixStore(state, "tokenizer").append(scope, each)
    assert SuffixStore(state, "tokenizer").load(scope) == pieces


def test_only_the_owner_may_read(store: SuffixStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store.append("my secret project", piece(1))
        store.append("opened", piece(1))
        store.path("opened").chmod(0o644)
        store.append("opened", piece(1))
    finally:
        os.umask(before)
    assert (tmp_path / FOLDER).stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / FOLDER).iterdir()] == [0o600] * 3
    assert not any("secret" in path.name for path in (tmp_path / FOLDER).iterdir())
    assert b"secret" not in store.path("my secret project").read_bytes()


def test_a_crash_at_any_byte_costs_only_what_was_torn(filled: SuffixStore, tmp_path: Path) -> None:
    path = filled.path("me")
    data = path.read_bytes()
    ends = [HEADER.size]
    for each in PIECES:
        ends.append(ends[-1] + len(encode(each)))
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        whole = sum(end <= length for end in ends[1:])
        again = SuffixStore(tmp_path, "tokenizer")
        assert again.load("me") == PIECES[:whole]
        again.append("me", piece(7))  # and the file is sound again
        assert path.stat().st_size == ends[whole] + len(encode(piece(7)))
        assert SuffixStore(tmp_path, "tokenizer").load("me") == [*PIECES[:whole], piece(7)]
    assert files(tmp_path) == [path]


def test_a_changed_byte_costs_only_what_stands_behind_it(
    filled: SuffixStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled.path("me")
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x41]) + data[index + 1 :])
        caplog.clear()
        found = SuffixStore(tmp_path, "tokenizer").load("me")
        assert found == PIECES[: len(found)]
        assert len(found) < len(PIECES)
        assert len(warnings(caplog)) == 1


def test_a_file_of_another_version_is_set_aside(
    filled: SuffixStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled.path("me")
    path.write_bytes(path.read_bytes()[:12] + b"\x63" + path.read_bytes()[13:])
    again = SuffixStore(tmp_path, "tokenizer")
    assert again.load("me") == []
    assert "another version" in warnings(caplog)[0]
    assert files(tmp_path) == [path.with_suffix(".bad")]
    again.append("me", piece(1))
    assert again.load("me") == [piece(1)]


def test_a_file_under_another_scopes_name_is_not_read(filled: SuffixStore, tmp_path: Path) -> None:
    filled.path("me").rename(filled.path("you"))
    assert SuffixStore(tmp_path, "tokenizer").load("you") == []


def test_a_file_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    store = SuffixStore(tmp_path, "tokenizer", scope_bytes=4000)
    for index in range(300):
        store.append("me", piece(*[index] * 20))
        assert store.path("me").stat().st_size <= 4000
    last = [each.tokens[0] for each in store.load("me")]
    assert last == list(range(300 - len(last), 300))
    assert len(last) >= 17
    assert files(tmp_path) == [store.path("me")]


def test_the_files_used_longest_ago_go_first(tmp_path: Path) -> None:
    store = SuffixStore(tmp_path, "tokenizer", total_bytes=2000)
    for index, scope in enumerate("abcd"):
        store.append(scope, piece(*[1] * 100))
        os.utime(store.path(scope), ns=(index, index))
    store.load("a")
    store.append("e", piece(*[1] * 100))
    assert {scope for scope in "abcde" if store.load(scope)} == set("acde")


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from array import array; from pathlib import Path\n"
        "from draftd.drafts.suffix_store import Piece, SuffixStore\n"
        "store = SuffixStore(Path(sys.argv[1]), 'tokenizer')\n"
        "for i in range(50): store.append('me', Piece(array('I', [int(sys.argv[2]), i]), 2, bytes(16)))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = [tuple(each.tokens) for each in SuffixStore(tmp_path, "tokenizer").load("me")]
    assert sorted(found) == [(n, i) for n in range(3) for i in range(50)]


def test_a_full_disk_costs_a_warning_and_no_answer(
    filled: SuffixStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draft = SuffixDraft(filled)
    size = filled.path("me").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
    try:
        draft.remember("me", [1, 2, 3, 4, 5] * 20)
        draft.remember("me", [6, 7, 8, 9] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(warnings(caplog)) == 1
    assert "cannot write the suffix cache" in warnings(caplog)[0]
    assert filled.path("me").stat().st_size == size
    assert SuffixStore(tmp_path, "tokenizer").load("me") == PIECES
    draft.remember("me", [4, 4, 4])
    assert SuffixStore(tmp_path, "tokenizer").load("me")[-1].tokens == array("I", [4, 4, 4])


def test_a_folder_that_is_none_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    store = SuffixStore(tmp_path, "tokenizer")
    store.append("me", piece(1))
    assert store.load("me") == []
    assert len(warnings(caplog)) == 1


def test_a_shortening_that_fails_leaves_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SuffixStore(tmp_path, "tokenizer", scope_bytes=500)
    store.append("me", piece(*range(50)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        store.append("me", piece(*range(100)))
    assert len(warnings(caplog)) == 1
    assert [len(each.tokens) for each in store.load("me")] == [50, 100]
    assert files(tmp_path) == [store.path("me")]


def test_clear_removes_all_of_it(filled: SuffixStore, tmp_path: Path) -> None:
    filled.append("you", piece(1))
    filled.path("them").with_suffix(".bad").write_text("damaged")
    assert clear(tmp_path) == 3
    assert files(tmp_path) == []
    assert filled.load("me") == []
    filled.append("me", piece(5))
    assert filled.load("me") == [piece(5)]
    assert clear(tmp_path / "nowhere") == 0


def test_the_file_in_use_stays_however_large(tmp_path: Path) -> None:
    store = SuffixStore(tmp_path, "tokenizer", total_bytes=100)
    store.append("me", piece(*range(100)))
    assert store.load("me") == [piece(*range(100))]
