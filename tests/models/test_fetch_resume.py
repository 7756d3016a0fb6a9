"""Downloads that were cut off: taken up again, by one process at a time, and what is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from draftd.ipc.errors import DownloadFailed
from draftd.models.catalog import Model
from draftd.models.fetch import ensure, forget_partial
from tests.models.downloads import CONTENT, HUB_PATH, index, model, server
from tests.models.file_server import FileServer

__all__ = ["index", "server"]


def test_a_cut_connection_is_resumed_at_once(server: FileServer, tmp_path: Path) -> None:
    server.cuts[HUB_PATH] = [100_000, 50_000]
    assert ensure(model(), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["", "bytes=100000-", "bytes=150000-"]


def test_a_partial_download_is_kept_and_taken_up_by_the_next_pull(server: FileServer, tmp_path: Path) -> None:
    server.cuts[HUB_PATH] = [120_000, 0, 0, 0]
    with pytest.raises(DownloadFailed, match=r"tiny: the model hub: .*120,000 bytes are kept, pull again"):
        ensure(model(), tmp_path)
    assert not (tmp_path / "models" / "m.gguf").exists()
    server.asked.clear()
    assert ensure(model(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [(HUB_PATH, "bytes=120000-")]


def test_a_partial_file_that_is_too_long_is_started_again(server: FileServer, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "m.gguf.hub.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 400_000)
    assert ensure(model(), tmp_path).read_bytes() == CONTENT


def test_nothing_is_left_of_a_source_that_failed_before_another_gave_the_file(
    server: FileServer, index: list[list[str]], tmp_path: Path
) -> None:
    server.cuts[HUB_PATH] = [120_000, 0, 0, 0]
    assert ensure(model(parts=3), tmp_path).read_bytes() == CONTENT
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_local_model_leaves_the_download_of_its_namesake(tmp_path: Path) -> None:
    part = tmp_path / "downloads" / "m.gguf.hub.part"
    part.parent.mkdir()
    part.write_bytes(b"half of another model")
    forget_partial(Model(name="own", path=tmp_path / "m.gguf"), tmp_path)
    assert part.exists()


def test_what_is_left_of_a_download_can_be_forgotten(
    server: FileServer, index: list[list[str]], tmp_path: Path
) -> None:
    server.cuts["/tiny_part2-1.0-py3-none-any.whl"] = [40_000, 0, 0, 0]
    wanted = model(hub=False, parts=3)
    with pytest.raises(DownloadFailed):
        ensure(wanted, tmp_path)
    names = ("tiny_part20-1.0-py3-none-any.whl.part", "tiny_part2-1.1-py3-none-any.whl")
    others = {tmp_path / "downloads" / name for name in names}
    for other in others:
        other.write_bytes(b"of another model")
    forget_partial(wanted, tmp_path)
    assert set((tmp_path / "downloads").iterdir()) == others


_CHILD = """
import json, resource, signal, sys
from pathlib import Path
from draftd.ipc.errors import DraftdError
from draftd.models.catalog import Model
from draftd.models.fetch import ensure
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    model = Model(**json.loads(sys.argv[1]))
    path = ensure(model, Path(sys.argv[2]), lambda step: print(step.stage, flush=True))
    print("done", path.stat().st_size, flush=True)
except DraftdError as error:
    print(error.code, error, flush=True)
"""


def child(cache: Path, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [model().model_dump_json(exclude_none=True), str(cache), str(limit)]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, *arguments], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_two_processes_download_once(server: FileServer, tmp_path: Path) -> None:
    server.gate.clear()
    with child(tmp_path) as first:
        assert first.stdout is not None
        assert server.arrived.wait(30)
        with child(tmp_path) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting\n"
            server.gate.set()
            assert second.stdout.read() == f"done {len(CONTENT)}\n"
        assert first.stdout.read().endswith(f"done {len(CONTENT)}\n")
    assert server.paths() == [HUB_PATH]


def test_a_disk_that_fills_up_keeps_what_came(server: FileServer, tmp_path: Path) -> None:
    with child(tmp_path, limit=100_000) as filling:
        said, _ = filling.communicate(timeout=60)
    assert "disk_full the disk under" in said
    assert (tmp_path / "downloads" / "m.gguf.hub.part").stat().st_size == 100_000
    server.asked.clear()
    assert ensure(model(), tmp_path).read_bytes() == CONTENT
    assert server.asked == [(HUB_PATH, "bytes=100000-")]
