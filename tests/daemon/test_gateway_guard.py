"""Whom the gateway lets in, and where it listens: hosts, origins, keys, addresses."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from draftd.daemon.gateway_cli import read_keys
from draftd.daemon.gateway_guard import Guard
from draftd.daemon.listening import bound, hostname
from draftd.ipc.errors import InvalidConfig
from tests.daemon.conftest import Daemon
from tests.daemon.gateways import gateway


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({}, 200),
    ],
)
def test_web_pages_of_others_get_nothing(base: str, headers: dict[str, str], status: int) -> None:
    assert httpx.get(f"{base}/v1/models", headers=headers).status_code == status


def test_its_own_page_may_ask(base: str) -> None:
    assert httpx.get(f"{base}/v1/models", headers={"Origin": base}).status_code == 200


def test_keys_and_a_daemon_that_is_away(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret-1\n")
    keys.chmod(0o600)
    nowhere = f"ipc://{tmp_path}/none.sock"
    with gateway(nowhere, "--api-keys", str(keys)) as base:
        assert httpx.get(f"{base}/v1/models").status_code == 401
        reply = httpx.get(f"{base}/v1/models", headers={"Authorization": "Bearer secret-1"})
        assert reply.status_code == 503
        assert reply.headers["Retry-After"]
        assert "draftd serve" in reply.json()["error"]["message"]
        figures = httpx.get(f"{base}/metrics")
        assert figures.status_code == 200
        assert "draftd_up 0.0" in figures.text


def test_a_unix_socket_is_its_owner_s(tmp_path: Path, shared: Daemon) -> None:
    path = tmp_path / "gateway.sock"
    with gateway(shared.endpoint, listen=f"unix:{path}"):
        assert path.stat().st_mode & 0o077 == 0
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
            assert http.get("http://draftd/v1/models").json()["data"][0]["id"] == "tiny"
    assert not path.exists()


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("0.0.0.0:80", "can be reached from other machines"),
        ("8080", "give 127.0.0.1:port or unix:/path"),
        ("127.0.0.1:99999", "give 127.0.0.1:port or unix:/path"),
        ("unix:/proc/no/x.sock", "cannot listen at"),
    ],
)
def test_addresses_that_can_not_be(listen: str, words: str) -> None:
    with pytest.raises(InvalidConfig, match=words), bound(listen, umask=0o077):
        pass


def test_a_keys_file_that_others_can_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    os.chmod(keys, 0o644)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        read_keys(keys)


def test_a_keys_file_that_is_no_text(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xff\xfe\x00key")
    keys.chmod(0o600)
    with pytest.raises(InvalidConfig, match="not UTF-8 text"):
        read_keys(keys)


def test_a_key_of_other_letters_than_ascii_s() -> None:
    async def app(*_: object) -> None: ...

    guard = Guard(app, keys=frozenset({"schlüssel-à"}))
    for key, status in (("schlüssel-à", None), ("schluessel", 401)):
        header = f"Bearer {key}".encode().decode("latin-1")  # as the guard reads what comes
        told = guard.refusal({"host": "localhost", "authorization": header}, "/v1/models")
        assert (told and told[0]) == status


def test_host_names() -> None:
    assert [hostname(host) for host in ("localhost:80", "[::1]:80", "EXAMPLE.org", "")] == [
        "localhost",
        "::1",
        "example.org",
        "",
    ]


def test_an_origin_that_is_allowed() -> None:
    async def app(*_: object) -> None: ...

    guard = Guard(app, origins=frozenset({"https://chat.example"}))
    assert guard.refusal({"host": "localhost", "origin": "https://chat.example"}, "/v1/models") is None
    assert guard.refusal({"host": "localhost", "origin": "null"}, "/v1/models") is not None


def test_a_page_of_an_allowed_origin_gets_at_the_answer(tmp_path: Path, shared: Daemon) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    options = ("--origin", "https://Chat.example/", "--api-keys", str(keys))  # as it may have been copied
    with gateway(shared.endpoint, *options) as address:
        base = f"{address}/v1/models"
        origin = {"Origin": "https://chat.example"}
        asks_first = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        allowed = httpx.options(base, headers=origin | asks_first)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        got = httpx.get(base, headers=origin | {"Authorization": "Bearer secret"})
        assert got.headers["access-control-allow-origin"] == "https://chat.example"
        assert got.status_code == 200
        other = httpx.options(base, headers={"Origin": "https://evil.example"} | asks_first)
        assert "access-control-allow-origin" not in other.headers


def test_keys_that_systemd_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_keys(keys) == {"secret"}
