"""Downloads against a hub and an index on this machine: checked, kept, clear when they fail."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from draftd.ipc.errors import CorruptModel, DiskFull, DownloadFailed, InvalidConfig, ModelNotFound
from draftd.models import download
from draftd.models.catalog import HubSource, Model
from draftd.models.fetch import Progress, ensure, is_here, verify
from tests.models.downloads import CONTENT, HUB_PATH, index, model, server
from tests.models.file_server import FileServer, sha256

__all__ = ["index", "server"]


def test_a_file_lands_with_its_progress_and_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = ensure(model(), tmp_path, seen.append)
    assert path == tmp_path / "models" / "m.gguf"
    assert path.read_bytes() == CONTENT
    loading = [step for step in seen if step.stage == "downloading"]
    assert [step.done for step in loading] == sorted(step.done for step in loading)
    assert (loading[-1].done, loading[-1].total, loading[-1].source) == (len(CONTENT), len(CONTENT), "hub")
    assert list((tmp_path / "downloads").iterdir()) == []

    assert ensure(model(), tmp_path) == path
    assert server.paths() == [HUB_PATH]
    assert server.tokens == ["Bearer secret"]


def test_a_start_does_not_hash_again(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(model(), tmp_path)
    monkeypatch.setattr("draftd.models.digest.sha256", lambda path: pytest.fail("hashed again"))
    ensure(model(), tmp_path)


def test_a_corrupt_file_is_dropped_and_the_next_source_tried(
    server: FileServer, index: list[list[str]], tmp_path: Path
) -> None:
    server.files[HUB_PATH] = bytes(len(CONTENT))
    seen: list[Progress] = []
    assert ensure(model(parts=3), tmp_path, seen.append).read_bytes() == CONTENT
    notes = [step.note for step in seen if step.stage == "note"]
    assert len(notes) == 1
    assert "the model hub failed: its file has SHA-256" in notes[0]
    assert list((tmp_path / "downloads").iterdir()) == []


def test_corrupt_everywhere_is_a_corrupt_model(server: FileServer, tmp_path: Path) -> None:
    server.files[HUB_PATH] = bytes(len(CONTENT))
    with pytest.raises(CorruptModel, match="SHA-256"):
        ensure(model(), tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_another_size_is_refused_before_it_is_fetched(server: FileServer, tmp_path: Path) -> None:
    server.files[HUB_PATH] = CONTENT + b"more"
    with pytest.raises(CorruptModel, match="300004 bytes where the catalog says 300000"):
        ensure(model(), tmp_path)
    assert not list((tmp_path / "downloads").iterdir())


def test_a_hash_that_only_the_hub_tells_is_checked_too(server: FileServer, tmp_path: Path) -> None:
    server.headers[HUB_PATH] = {"X-Linked-Etag": f'"{sha256(b"other")}"'}
    unknown = model().model_copy(update={"sha256": None, "size": None})
    with pytest.raises(CorruptModel, match="SHA-256"):
        ensure(unknown, tmp_path)


def test_an_unreachable_source_costs_little_and_is_said_once(
    server: FileServer, index: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    with socket.socket() as deaf, socket.socket() as first, socket.socket() as second:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for filler in (first, second):  # the queue is full: a further connection gets no answer at all
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        seen: list[Progress] = []
        began = time.monotonic()
        assert ensure(model(parts=3), tmp_path, seen.append).read_bytes() == CONTENT
    assert time.monotonic() - began < 5  # without the limit the system tries for two minutes
    notes = [step.note for step in seen if step.stage == "note"]
    assert notes == ["tiny: the model hub failed: no connection within 0.2 seconds"]


def test_a_name_that_is_not_answered_costs_little_too(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = threading.Event()
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *question, **more: silence.wait(20) or [])
    began = time.monotonic()
    try:
        with pytest.raises(DownloadFailed, match=r"no connection within 0\.2 seconds"):
            ensure(model(), tmp_path)
    finally:
        silence.set()
    assert time.monotonic() - began < 5


def test_a_proxy_that_can_not_be_used_is_said(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:1")
    with pytest.raises(DownloadFailed, match=r"proxy that the environment names can't be used .*ALL_PROXY"):
        ensure(model(), tmp_path)


def test_an_address_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(download.SourceFailed, match="it can't be asked: Invalid port"):
        download.download("http://127.0.0.1:port/x", tmp_path / "x.part")


def test_a_name_that_no_repository_has_is_said(server: FileServer, tmp_path: Path) -> None:
    misnamed = model().model_copy(update={"hub": HubSource(repo="owner/repo.git", file="m.gguf")})
    with pytest.raises(DownloadFailed, match=r"owner/repo\.git can't be a repository's name: .*'\.git'"):
        ensure(misnamed, tmp_path)


def test_too_little_room_is_said_before_anything_is_fetched(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1234)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFull, match="300,000 bytes are needed and 1,234 are free"):
        ensure(model(), tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("damage", [CONTENT[:-1], bytes(len(CONTENT))], ids=["short", "changed"])
def test_a_damaged_file_of_the_cache_is_fetched_again(
    server: FileServer, tmp_path: Path, damage: bytes
) -> None:
    path = ensure(model(), tmp_path)
    path.write_bytes(damage)
    assert not is_here(model(), tmp_path)
    assert ensure(model(), tmp_path).read_bytes() == CONTENT


def test_verify_reads_the_file_again(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="not on this machine"):
        verify(model(), tmp_path)
    path = ensure(model(), tmp_path)
    verify(model(), tmp_path)
    before = path.stat()
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the stamp can't see this change
    assert is_here(model(), tmp_path)
    with pytest.raises(CorruptModel, match="pull it again"):
        verify(model(), tmp_path)
    assert not is_here(model(), tmp_path)


def test_local_files_are_used_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    own = Model(name="own", path=path, size=4)
    with pytest.raises(ModelNotFound, match=r"there is no .*own\.gguf"):
        ensure(own, tmp_path / "cache")
    path.write_bytes(b"GGUF and more")
    with pytest.raises(CorruptModel, match="13 bytes where 4"):
        ensure(own, tmp_path / "cache")
    path.write_bytes(b"GGUF")
    assert ensure(own, tmp_path / "cache") == path


def test_a_cache_that_cannot_be_written_is_said(server: FileServer, tmp_path: Path) -> None:
    cache = tmp_path / "file"
    cache.write_text("not a directory")
    with pytest.raises(InvalidConfig, match="cannot write"):
        ensure(model(), cache)
