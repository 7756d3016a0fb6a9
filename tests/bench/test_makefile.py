from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
# Stands for an environment's Python: tells what it was asked. The other one finds no wheel for any package.
PYTHON = '#!/bin/sh\necho "$*" >>asked\n'
WITHOUT_WHEELS = PYTHON + '[ "$2" != pip ]\n'


def environments(folder: Path, python: str, *names: str) -> None:
    for name in names:
        path = folder / name / "bin" / "python"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(python)
        path.chmod(0o755)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """make in a folder where all is installed."""
    return subprocess.run(
        ["make", "-f", str(MAKEFILE), "-o", "install", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        timeout=60,
    )


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize(("target", "program"), [("bench-peers", "side_by_side"), ("bench-memory", "memory")])
def test_peers_that_cannot_be_installed_do_not_keep_the_others_from_being_measured(
    tmp_path: Path, target: str, program: str
) -> None:
    environments(tmp_path, WITHOUT_WHEELS, ".venv", ".venv-peers")
    done = make(tmp_path, target, "PROMPTS=p.jsonl")
    assert done.returncode == 0, done.stderr
    *installed, measured = asked(tmp_path)
    assert [each.split()[-1] for each in installed] == ["xllamacpp", "openvino-genai", "scikit-learn"]
    assert measured.startswith(f"bench/{program}.py ")
    assert f"--json .venv/{target}.json --backend transformers --prompts p.jsonl" in measured
    assert "--python llama_server=.venv-peers/bin/python" in measured
    assert done.stdout.count("will be missing") == 3


@pytest.mark.parametrize("target", ["bench", "bench-peers", "bench-simulated"])
def test_prompts_that_are_not_given_are_asked_for_before_anything_is_installed(
    tmp_path: Path, target: str
) -> None:
    environments(tmp_path, PYTHON, ".venv", ".venv-peers")
    done = make(tmp_path, target)
    assert done.returncode == 2
    assert done.stdout == f"make {target}: say which prompts: make {target} PROMPTS=prompts.jsonl\n"
    assert not (tmp_path / "asked").exists()


def test_int4_models_are_made_in_an_environment_that_is_made_once(tmp_path: Path) -> None:
    environments(tmp_path, WITHOUT_WHEELS, ".venv", ".venv-int4")
    (tmp_path / ".venv" / "constraints.txt").write_text("# why\ntorch==1.0\ntransformers==2.0\n")
    assert make(tmp_path, "bench-int4").returncode != 0
    install = "-m pip install --quiet --constraint .venv-int4/constraints.txt optimum-intel[openvino]"
    assert asked(tmp_path) == [install], "without optimum-cli there is nothing to export by"
    environments(tmp_path, PYTHON, ".venv-int4")
    for given in (["PAIR=smollm2"], ["OUT=here"]):
        done = make(tmp_path, "bench-int4", *given)
        assert done.returncode == 0, done.stderr
    assert asked(tmp_path)[1:] == [
        install,
        "-m pip uninstall --quiet --yes torchvision",
        "bench/int4.py --pair smollm2 --optimum .venv-int4/bin/optimum-cli .venv/bench-int4-smollm2",
        "bench/int4.py --pair qwen2.5-coder --optimum .venv-int4/bin/optimum-cli here",
    ]
    assert (tmp_path / ".venv-int4" / "constraints.txt").read_text() == "torch==1.0\n"


def test_clean_removes_every_environment(tmp_path: Path) -> None:
    environments(tmp_path, PYTHON, ".venv", ".venv-peers", ".venv-int4", "mine")
    done = make(tmp_path, "clean")
    assert done.returncode == 0, done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_no_file_of_a_targets_name_keeps_it_from_running() -> None:
    text = MAKEFILE.read_text("utf-8").replace("\\\n", " ")
    (phony,) = re.findall(r"^\.PHONY:(.*)", text, re.MULTILINE)
    assert set(re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE)) <= set(phony.split())
