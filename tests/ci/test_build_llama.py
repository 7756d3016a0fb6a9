"""The choice of compiler, by fake compilers on a PATH that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "build-llama"
Fake = Callable[..., None]

X86 = os.uname().machine == "x86_64"


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """fake(name, version): a compiler of this name, which fails to compile unless `works`."""

    def make(name: str, version: str, works: bool = True) -> None:
        banner = f"clang version {version}" if "clang" in name else f"{name} (Debian) {version}"
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            "#!/bin/sh\n"
            f'case "$*" in\n--version) echo "{banner}";;\n-dumpfullversion) echo "{version}";;\n'
            f"*-fsyntax-only*) exit {0 if works else 1};;\n*) exit 1;;\nesac\n"
        )
        path.chmod(0o755)

    return make


def run(tmp_path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "LLAMA_CUDA": "0"} | variables
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], env=environment, capture_output=True, text=True, timeout=60
    )


def key(tmp_path: Path, **variables: str) -> str:
    done = run(tmp_path, "--key", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_newest_clang_wins(tmp_path: Path, fake: Fake) -> None:
    for name, version in [("clang++-16", "16.0.6"), ("clang++-19", "19.1.7"), ("g++", "14.2.0")]:
        fake(name, version)
    assert "-clang19.1.7-" in key(tmp_path)


def test_clang_without_a_cxx_library_is_passed_over(tmp_path: Path, fake: Fake) -> None:
    fake("clang++-19", "19.1.7", works=False)
    fake("clang++-16", "16.0.6")
    assert "-clang16.0.6-" in key(tmp_path)


@pytest.mark.parametrize(("version", "chosen"), [("14.0.6", "-gcc12.2.0-"), ("18.1.8", "-clang18.1.8-")])
def test_plain_clang_counts_from_16_on(tmp_path: Path, fake: Fake, version: str, chosen: str) -> None:
    fake("clang++", version)
    fake("g++", "12.2.0")
    assert chosen in key(tmp_path)


def test_variables_come_first(tmp_path: Path, fake: Fake) -> None:
    fake("clang++-19", "19.1.7")
    fake("g++-13", "13.2.0")
    assert "-gcc13.2.0-" in key(tmp_path, CXX="g++-13")
    assert "-gcc13.2.0-" in key(tmp_path, CC="gcc-13")


def test_a_wrong_variable_is_one_sentence(tmp_path: Path, fake: Fake) -> None:
    fake("g++", "12.2.0")
    done = run(tmp_path, "--key", CXX="nothing++")
    assert done.returncode != 0
    assert done.stderr == (
        "build-llama: CXX=nothing++ is not a working C++ compiler: correct or unset CC and CXX\n"
    )


def test_no_compiler_names_the_package(tmp_path: Path) -> None:
    done = run(tmp_path, "--key")
    assert done.returncode != 0
    assert "sudo apt install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_flags_make_another_key(tmp_path: Path, fake: Fake) -> None:
    fake("g++", "13.2.0")
    assert key(tmp_path) == key(tmp_path)
    assert key(tmp_path) != key(tmp_path, CXXFLAGS="-O2")
    assert key(tmp_path) != key(tmp_path, CMAKE_ARGS="-DGGML_AVX512=OFF")


@pytest.fixture
def pip(tmp_path: Path) -> Path:
    """A stand-in for pip that writes down what it was given, and a wheel unless FAIL is set."""
    path = tmp_path / "stub" / "pip" / "__main__.py"
    path.parent.mkdir(parents=True)
    (path.parent / "__init__.py").touch()
    path.write_text(
        "import os, pathlib, sys\n"
        "print(*[f'line {number}' for number in range(40)], sep='\\n')\n"
        "if os.environ.get('FAIL'): sys.exit(1)\n"
        "into = next(word for word in sys.argv if word.startswith('--wheel-dir=')).partition('=')[2]\n"
        "pathlib.Path(into).mkdir()\n"
        "text = '\\n'.join(os.environ.get(name, '') for name in ('CC', 'CXX', 'CXXFLAGS', 'CMAKE_ARGS'))\n"
        "pathlib.Path(into, 'llama_cpp_python-0-py3-none-any.whl').write_text(text)\n"
    )
    return path.parents[1]


@pytest.mark.skipif(not X86, reason="AMX is an x86 matter")
@pytest.mark.parametrize(("version", "without"), [("12.2.0", True), ("13.2.0", False)])
def test_gcc_before_13_builds_without_amx(
    tmp_path: Path, fake: Fake, pip: Path, version: str, without: bool
) -> None:
    fake("g++", version)
    done = run(tmp_path, PYTHONPATH=str(pip))
    assert done.returncode == 0, done.stderr
    wheel = Path(done.stdout.strip())
    assert wheel.is_relative_to(tmp_path / ".cache" / "draftd" / "wheels")
    cc, cxx, flags, options = wheel.read_text().splitlines()
    assert (cc, cxx) == ("gcc", "g++")
    assert ("-mno-amx-tile" in flags) is without
    assert "-DGGML_OPENMP=OFF" in options
    assert "about 6 minutes on two cores, once" in done.stderr


def test_a_second_call_does_not_build(tmp_path: Path, fake: Fake, pip: Path) -> None:
    fake("g++", "13.2.0")
    first = run(tmp_path, PYTHONPATH=str(pip))
    second = run(tmp_path, PYTHONPATH=str(pip), FAIL="1")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert second.stderr == ""


def test_a_failed_build_shows_the_end_of_its_log_and_is_tried_again(
    tmp_path: Path, fake: Fake, pip: Path
) -> None:
    fake("g++", "13.2.0")
    failed = run(tmp_path, PYTHONPATH=str(pip), FAIL="1", XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert failed.returncode != 0
    assert failed.stdout == ""
    assert "line 19\n" not in failed.stderr
    assert "line 20\n" in failed.stderr
    assert "line 39\n" in failed.stderr
    log = Path(failed.stderr.split("the whole log is ")[1].strip())
    assert log.is_relative_to(tmp_path / "xdg")
    assert "line 0\n" in log.read_text()
    again = run(tmp_path, PYTHONPATH=str(pip), XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert again.returncode == 0, again.stderr
