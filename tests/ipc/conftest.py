"""Both clients and the scripted daemon that they speak to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from draftd.ipc import AsyncClient, Client, Done, Reply, Tokens, messages
from tests.ipc.scripted import ScriptedDaemon


class Sync:
    """The calls of AsyncClient as blocking ones, so that a test reads the same for both."""

    def __init__(self, endpoint: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(_make(endpoint, **options))

    def generate(self, **params: Any) -> Iterator[Tokens | Done]:
        stream = self._client.generate(**params)

        def events() -> Iterator[Tokens | Done]:
            try:
                while True:
                    yield self._runner.run(stream.__anext__())
            except StopAsyncIteration:
                return
            finally:
                self._runner.run(stream.aclose())

        return events()

    def complete(self, **params: Any) -> Reply:
        return self._runner.run(self._client.complete(**params))

    def status(self) -> messages.Status:
        return self._runner.run(self._client.status())

    def clear(self, learnt: bool = False) -> int:
        return self._runner.run(self._client.clear(learnt))

    def prefill(self, *, wait: bool = True, **params: Any) -> messages.Prefilled | None:
        return self._runner.run(self._client.prefill(wait=wait, **params))

    def load(self) -> messages.Status:
        return self._runner.run(self._client.load())

    def unload(self) -> messages.Status:
        return self._runner.run(self._client.unload())

    def ping(self) -> float:
        return self._runner.run(self._client.ping())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _make(endpoint: str, **options: Any) -> AsyncClient:
    return AsyncClient(endpoint, **options)


Connect = Callable[..., Any]


@pytest.fixture(params=[Client, Sync], ids=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    made = []

    def make(endpoint: str, **options: Any) -> Any:
        made.append(request.param(endpoint, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "d.sock") as running:
        yield running
