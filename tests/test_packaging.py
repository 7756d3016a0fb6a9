"""The sdist, the wheel made from it, and that wheel in a fresh environment with what it asks for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PARTS = ("daemon", "models", "drafts", "ipc", "systemd")


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DRAFTD_", "PYTHON"))}
    return subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel, built from a copy of what the checkout holds."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", source, cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "dist"


@pytest.fixture(scope="module")
def fresh(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with the wheel and the libraries that it asks for, no more."""
    place = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(place, with_pip=False)
    libraries = next(place.glob("lib/python*/site-packages"))
    for found in required("draftd"):
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            (libraries / name).symlink_to(Path(str(found.locate_file(name))))
    (wheel,) = built.glob("*.whl")
    python = place / "bin/python"
    pip = ("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index")
    done = run(sys.executable, *pip, wheel, cwd=place, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return python.parent


def required(name: str) -> Iterator[Distribution]:
    """The distributions that one needs without its extras, and what those need."""
    seen: set[str] = set()
    names = [name]
    while names:
        for line in distribution(names.pop()).requires or []:
            requirement = Requirement(line)
            key = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if key not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                seen.add(key)
                names.append(key)
                yield distribution(key)


def test_sdist_and_wheel_carry_every_file_of_the_packages(built: Path) -> None:
    found = [file.relative_to(ROOT) for part in PARTS for file in (ROOT / part).rglob("*") if file.is_file()]
    files = {str(file) for file in found if "__pycache__" not in file.parts}
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"draftd/{file}" for file in files} - names == set()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {*files, "LICENSE", "README.md", "pyproject.toml"} - packed == set()


def test_the_wheel_alone_is_a_client_and_a_command_line(fresh: Path, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "100"}
    missing = run(fresh / "python", "-c", "import torch", cwd=tmp_path)
    assert "No module named 'torch'" in missing.stderr
    for arguments, status, said in (
        (["--help"], 0, "Ask once: stream the answer to a prompt."),
        (["--version"], 0, f"draftd {distribution('draftd').version}"),
        (["models", "list"], 0, "qwen2.5-coder"),
        (["status"], 3, "no daemon answers at"),
        (["service", "install", "--dry-run"], 0, "draftd.service"),
        (["doctor"], 0, "this machine can be a client only"),
    ):
        done = run(fresh / "draftd", *arguments, cwd=tmp_path, **home)
        assert (done.returncode, said in done.stdout + done.stderr) == (status, True), (arguments, done)


def test_an_installed_package_finds_its_files(fresh: Path, tmp_path: Path) -> None:
    program = """
from importlib.resources import files
from draftd.ipc import AsyncClient, Client
for package, name in [("systemd", "draftd.service"), ("models", "catalog.toml"), ("ipc", "PROTOCOL.md")]:
    place = files("draftd." + package) / name
    assert place.is_file() and "site-packages" in str(place), place
"""
    done = run(fresh / "python", "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
