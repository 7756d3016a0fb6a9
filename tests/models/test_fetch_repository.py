"""Repositories fetched whole from a hub on this machine: of one commit, and mended."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from draftd.ipc.errors import CorruptModel, DiskFull, DownloadFailed
from draftd.models import hub
from draftd.models.catalog import HubSource, Model
from draftd.models.fetch import ensure, verify
from tests.models.downloads import CONTENT, server
from tests.models.file_server import FileServer, sha256

__all__ = ["server"]


def publish(server: FileServer, files: dict[str, bytes], commit: str) -> str:
    """The repository's files, the larger ones with a hash, at its newest commit; the path of their list."""
    listing = [
        {"rfilename": name, "size": len(body), "blobId": "b"}
        | ({"lfs": {"sha256": sha256(body), "size": len(body), "pointerSize": 1}} if len(body) > 9 else {})
        for name, body in files.items()
    ]
    info = {"id": "owner/repo", "modelId": "owner/repo", "sha": commit, "siblings": listing, "tags": []}
    asked = "/api/models/owner/repo/revision/main?blobs=true"
    server.files[asked] = json.dumps(info).encode()
    server.headers[asked] = {"Content-Type": "application/json"}
    for name, body in files.items():
        server.files[f"/owner/repo/resolve/{commit}/{name}"] = body
    return asked


WHOLE = Model(name="whole", hub=HubSource(repo="owner/repo"))


def test_a_repository_is_fetched_whole_and_mended(server: FileServer, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": CONTENT, "README.md": b"no", "onnx/model.json": b"no"}
    commit, whole = "c" * 40, WHOLE
    asked = publish(server, files | {"consolidated.safetensors": CONTENT}, commit)
    path = ensure(whole, tmp_path)
    assert sorted(item.name for item in path.iterdir()) == [
        "config.json", "draftd-manifest.json", "model.safetensors",
    ]  # fmt: skip
    verify(whole, tmp_path)
    server.asked.clear()
    assert ensure(whole, tmp_path) == path
    assert server.asked == []
    (path / "config.json").unlink()
    assert ensure(whole, tmp_path) == path
    assert server.paths() == [asked, f"/owner/repo/resolve/{commit}/config.json"]
    (path / "model.safetensors").write_bytes(bytes(len(CONTENT)))
    with pytest.raises(CorruptModel, match=r"model\.safetensors"):
        verify(whole, tmp_path)


def test_a_repository_taken_up_after_its_branch_moved_is_of_one_commit(
    server: FileServer, tmp_path: Path
) -> None:
    old = {"config.json": b"{} ", "a.safetensors": CONTENT, "b.safetensors": CONTENT}
    gone = {"added_tokens.json": b"{}", "aa.safetensors": CONTENT}
    publish(server, gone | old, "a" * 40)
    server.cuts[f"/owner/repo/resolve/{'a' * 40}/b.safetensors"] = [1000, 0, 0, 0]
    with pytest.raises(DownloadFailed):
        ensure(WHOLE, tmp_path)
    new = {name: bytes(len(body)) for name, body in old.items()}
    publish(server, new, "b" * 40)
    path = ensure(WHOLE, tmp_path)
    assert {name: (path / name).read_bytes() for name in new} == new
    assert sorted(item.name for item in path.iterdir()) == sorted([*new, "draftd-manifest.json"])


def test_what_has_come_of_a_repositorys_file_needs_no_room_again(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, {"model.safetensors": CONTENT}, "c" * 40)
    server.cuts[f"/owner/repo/resolve/{'c' * 40}/model.safetensors"] = [200_000, 0, 0, 0]
    with pytest.raises(DownloadFailed):
        ensure(WHOLE, tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=150_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert (ensure(WHOLE, tmp_path) / "model.safetensors").read_bytes() == CONTENT


def test_a_disk_that_fills_up_with_the_last_of_a_repository_is_said(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    publish(server, {"model.safetensors": CONTENT}, "c" * 40)
    monkeypatch.setattr(hub, "write_manifest", full)
    with pytest.raises(DiskFull, match="pull again"):
        ensure(WHOLE, tmp_path)
