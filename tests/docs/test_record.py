"""The recorder of the README's picture, over a real terminal and a small program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def recorded(path: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/record.py", str(path), "greet", "sh", "-c", script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "greet.svg"
    done = recorded(
        path,
        r"printf 'one \033[32m<two>\033[0m\n'; sleep .2; printf turning; sleep .2; printf '\r\033[Kend'",
    )
    assert done.returncode == 0, done.stderr
    root = ElementTree.parse(path).getroot()
    texts = {text.text: text for text in root.iter(f"{SVG}text")}
    assert texts.keys() == {"$", "greet", "one", "<two>", "turning", "end"}
    assert texts["<two>"].get("fill") != texts["one"].get("fill")
    assert texts["end"].get("y") == texts["turning"].get("y")
    rules = "".join(style.text or "" for style in root.iter(f"{SVG}style"))
    kind = texts["turning"].get("class")
    assert f".{kind}{{animation:{kind} " in rules  # shown for a while, and not at the end
    assert rules.split(f".{kind}{{")[1].split("}")[0].endswith("visibility:hidden")


def test_what_fails_is_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "greet.svg"
    done = recorded(path, "echo no; exit 3")
    assert done.returncode != 0
    assert "exit status 3" in done.stderr
    assert not path.exists()
