"""`draftd models` as a user runs it, on a cache and a catalog of the test's own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner, Result

from draftd.daemon.models_cli import models_app
from draftd.ipc.errors import CorruptModel, DownloadFailed, InvalidRequest, ModelNotFound
from draftd.models.catalog import load_catalog
from draftd.models.convert import converted_path
from draftd.models.digest import write_manifest
from tests.models.file_server import FileServer, serve

BIG, SMALL = b"GGUF" + b"b" * 5000, b"GGUF" + b"s" * 3000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A hub with two models, of which the user's catalog makes the pairs `mine` and `half`."""
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        for name in [name for name in os.environ if name.startswith("DRAFTD_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("DRAFTD_CONFIG", str(tmp_path / "config.toml"))
        (tmp_path / "config.toml").write_text('pair = "mine"\nbackend = "llama_cpp"\n')
        monkeypatch.setenv("DRAFTD_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("DRAFTD_CATALOG", str(tmp_path / "catalog.toml"))
        running.files = {"/o/r/resolve/main/big.gguf": BIG, "/o/r/resolve/main/small.gguf": SMALL}
        entries = [
            f'[models.{name}]\nfile = "{name}.gguf"\nsize = {len(body)}\n'
            f'sha256 = "{hashlib.sha256(body).hexdigest()}"\nhub = {{ repo = "o/r", file = "{name}.gguf" }}\n'
            for name, body in (("big", BIG), ("small", SMALL))
        ]
        entries += ['[pairs.mine]\ntarget = "big"\ndraft = "small"\n', '[pairs.half]\ntarget = "small"\n']
        (tmp_path / "catalog.toml").write_text("\n".join(entries))
        yield running


def models(*arguments: str, answer: str | None = None) -> Result:
    result = CliRunner().invoke(models_app, arguments, input=answer)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_pull_verify_and_list(server: FileServer, tmp_path: Path) -> None:
    assert "no " in next(line for line in models("list").output.splitlines() if line.startswith("mine"))
    pulled = models("pull")
    assert pulled.exit_code == 0
    assert "the draft is not tuned: " in pulled.stderr  # small.gguf is none that llama.cpp reads
    assert (tmp_path / "cache" / "models" / "big.gguf").read_bytes() == BIG
    assert (tmp_path / "cache" / "models" / "small.gguf").read_bytes() == SMALL
    assert models("verify").output == "big: good\nsmall: good\n"
    line = next(line for line in models("list").output.splitlines() if line.startswith("mine"))
    assert "yes" in line
    assert "8.0 kB" in line
    asked = len(server.asked)
    assert models("pull").exit_code == 0
    assert len(server.asked) == asked


def test_pull_says_why_it_failed(server: FileServer) -> None:
    server.files.clear()
    with pytest.raises(DownloadFailed, match="cannot fetch big: the model hub: it answered 404"):
        models("pull")


def test_verify_names_every_bad_file_and_the_last_decides(server: FileServer, tmp_path: Path) -> None:
    models("pull")
    big = tmp_path / "cache" / "models" / "big.gguf"
    directory = converted_path(big, tmp_path / "cache", "bfloat16")
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights")
    write_manifest(directory)
    assert f"{directory.name}: good" in models("verify", "mine").output
    (directory / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(CorruptModel, match=r"model\.safetensors.*models pull mine") as caught:
        models("verify", "mine")
    assert caught.value.exit_status == 4
    assert not directory.exists()
    big.write_bytes(BIG[:-1] + b"x")
    with pytest.raises(CorruptModel, match="pull it again"):
        models("verify", "mine")


def test_verify_says_of_a_directory_of_ones_own_that_nothing_was_compared(
    server: FileServer, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text("{}")
    models("add", "own", "--target", str(own))
    assert models("verify", "own").output == "own-target: good (the catalog gives no hash to compare with)\n"


def test_remove_keeps_what_another_pair_needs(server: FileServer, tmp_path: Path) -> None:
    models("pull")
    files = tmp_path / "cache" / "models"
    converted = converted_path(files / "big.gguf", tmp_path / "cache", "bfloat16")
    converted.mkdir(parents=True)
    assert models("remove", "mine", answer="n\n").exit_code == 1
    assert (files / "big.gguf").exists()
    removed = models("remove", "mine", answer="y\n")
    assert removed.exit_code == 0
    assert "big.gguf (5.0 kB)" in removed.output
    assert not (files / "big.gguf").exists()
    assert not converted.exists()
    assert (files / "small.gguf").exists()  # `half` is here in full and needs it
    assert "mine" not in load_catalog().pairs
    assert models("remove", "half", "--yes").exit_code == 0
    assert not (files / "small.gguf").exists()
    assert "half" not in load_catalog().pairs


def test_remove_never_touches_a_file_outside_the_cache(server: FileServer, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(BIG)
    assert "added own to" in models("add", "own", "--target", str(own), "--draft", str(own)).output
    assert load_catalog().pair("own").models == [load_catalog().model("own-target")]
    models("remove", "own", "--yes")
    assert own.read_bytes() == BIG
    assert set(load_catalog().models) >= {"big", "small"}
    assert "own-target" not in load_catalog().models


def test_remove_of_nothing_says_so(server: FileServer) -> None:
    assert "nothing to remove" in models("remove", "smollm2").output
    with pytest.raises(ModelNotFound, match="no pair 'nine'; did you mean mine"):
        models("remove", "nine")


def test_add_says_what_is_wrong(server: FileServer) -> None:
    with pytest.raises(InvalidRequest, match="--backend vllm: should be one of auto"):
        models("add", "x", "--target", "hub:o/r", "--backend", "vllm")
    with pytest.raises(InvalidRequest, match="--force"):
        models("add", "mine", "--target", "hub:o/r")
    assert models("add", "x").exit_code == 2


def test_help_and_list_import_no_engine() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom draftd.daemon.models_cli import models_app\n"
        "for words in (['--help'], ['list'], ['pull', '--help']):\n"
        "    assert CliRunner().invoke(models_app, words).exit_code == 0\n"
        "loaded = {'torch', 'transformers', 'llama_cpp', 'huggingface_hub'} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stderr) == (0, "")
