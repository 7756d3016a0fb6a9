from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"
# Stands for both environments' Python: tells what it was asked, and finds no wheel for any package.
PYTHON = '#!/bin/sh\necho "$*" >>asked\n[ "$2" != pip ]\n'


@pytest.mark.parametrize(("target", "program"), [("bench-peers", "side_by_side"), ("bench-memory", "memory")])
def test_peers_that_cannot_be_installed_do_not_keep_the_others_from_being_measured(
    tmp_path: Path, target: str, program: str
) -> None:
    for environment in (".venv", ".venv-peers"):
        python = tmp_path / environment / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON)
        python.chmod(0o755)
    done = subprocess.run(
        ["make", "-f", str(MAKEFILE), "-o", "install", target, "PROMPTS=p.jsonl"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    *installed, measured = (tmp_path / "asked").read_text().splitlines()
    assert [each.split()[-1] for each in installed] == ["xllamacpp", "openvino-genai", "scikit-learn"]
    assert measured.startswith(f"bench/{program}.py ")
    assert f"--json .venv/{target}.json --backend transformers --prompts p.jsonl" in measured
    assert "--python llama_server=.venv-peers/bin/python" in measured
    assert done.stdout.count("will be missing") == 3
