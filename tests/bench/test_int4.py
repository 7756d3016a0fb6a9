from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Run = Callable[..., ModuleType]

# Stands for optimum-cli: tells what it was asked, and writes what says which model it was given.
OPTIMUM = """#!/bin/sh
echo "$@" >>"$0.asked"
for out; do :; done
mkdir "$out" && cp "$4/made" "$out/openvino_model.xml"
"""
HOW = "--task text-generation-with-past --weight-format int4 --group-size 64"

pytestmark = pytest.mark.usefixtures("tiny_pair")


@pytest.fixture
def optimum(
    program: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """optimum(script): a program of this text; the GGUFs are converted already."""

    def convert(gguf: Path, cache: Path, dtype: str) -> Path:
        assert dtype == "bfloat16"
        folder = tmp_path / f"converted {gguf.stem}"
        folder.mkdir(exist_ok=True)
        (folder / "made").write_text(gguf.stem)
        return folder

    monkeypatch.setattr(program("int4"), "ensure_transformers", convert)

    def make(script: str = OPTIMUM) -> Path:
        path = tmp_path / "optimum-cli"
        path.write_text(script)
        path.chmod(0o755)
        return path

    return make


def asked(optimum: Path) -> list[str]:
    """The command lines it was given."""
    return optimum.with_name("optimum-cli.asked").read_text().splitlines()


def test_both_models_are_exported_once(
    run_main: Run, tmp_path: Path, optimum: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cli, out = optimum(), tmp_path / "a" / "int4"
    given = ("int4", "--pair", "tiny", "--optimum", cli, out)
    (out / ".new").mkdir(parents=True)
    (out / ".new" / "half").touch()  # of a run that was killed
    run_main(*given)
    assert asked(cli) == [
        f"export openvino --model {tmp_path}/converted {part} {HOW} {out}/.new"
        for part in ("target", "draft")
    ]
    assert sorted(each.name for each in out.iterdir()) == ["draft", "target"]
    for part in ("target", "draft"):
        assert (out / part / "openvino_model.xml").read_text() == part
        assert not (out / part / "half").exists()
    (out / "draft" / "openvino_model.xml").unlink()
    (out / "draft" / "source.txt").unlink()
    (out / "draft").rmdir()
    run_main(*given)
    assert len(asked(cli)) == 3, "the draft alone"
    assert f"{out}/target is there and is kept" in capsys.readouterr().err


def test_a_draft_that_is_the_target_is_a_link_to_it(
    run_main: Run, tmp_path: Path, optimum: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(catalog.read_text() + '[pairs.same]\ntarget = "target"\ndraft = "target"\n')
    cli, out = optimum(), tmp_path / "int4"
    for _ in range(2):
        run_main("int4", "--pair", "same", "--optimum", cli, out)
        assert (out / "draft").readlink() == Path("target")
        assert (out / "draft" / "openvino_model.xml").read_text() == "target"
    assert len(asked(cli)) == 1
    said = capsys.readouterr().err
    assert f"{out}/draft is a link to the target" in said
    assert f"{out}/draft is there and is kept" in said


def test_what_this_program_did_not_make_is_left_alone(
    run_main: Run, tmp_path: Path, optimum: Callable[..., Path]
) -> None:
    catalog = tmp_path / "catalog.toml"
    other = '[pairs.other]\ntarget = "draft"\ndraft = "target"\n[pairs.alone]\ntarget = "target"\n'
    catalog.write_text(catalog.read_text() + other)
    cli, out = optimum(), tmp_path / "int4"
    given = ("int4", "--optimum", cli, out, "--pair")
    with pytest.raises(SystemExit, match="the pair alone has no draft"):
        run_main(*given, "alone")
    out.mkdir()
    (out / "notes.txt").touch()
    with pytest.raises(SystemExit, match=r"int4 holds something else \(notes\.txt\): name an empty folder"):
        run_main(*given, "tiny")
    (out / "notes.txt").unlink()
    (out / "target").mkdir()  # exported by hand, of whatever it was
    (out / "target" / "openvino_model.xml").write_text("mine")
    with pytest.raises(SystemExit, match=r"int4/target is no export of target\.gguf by this program"):
        run_main(*given, "tiny")
    assert (out / "target" / "openvino_model.xml").read_text() == "mine"
    (out / "target").rename(tmp_path / "mine")
    run_main(*given, "tiny")
    with pytest.raises(SystemExit, match=r"int4/target is no export of draft\.gguf by this program"):
        run_main(*given, "other")
    assert len(asked(cli)) == 2, "for the pair tiny"


@pytest.mark.parametrize(
    ("script", "ended"), [("exit 3", "status 3"), ("kill -9 $$", "signal 9, often a lack of memory")]
)
def test_an_export_that_fails_leaves_nothing(
    run_main: Run, tmp_path: Path, optimum: Callable[..., Path], script: str, ended: str
) -> None:
    cli, out = optimum(f"{OPTIMUM}{script}\n"), tmp_path / "int4"
    with pytest.raises(SystemExit, match=f"optimum-cli ended with {ended}, and there is no {out}/target"):
        run_main("int4", "--pair", "tiny", "--optimum", cli, out)
    assert list(out.iterdir()) == []
    assert len(asked(cli)) == 1


def test_without_optimum_it_says_how_to_have_it(run_main: Run, tmp_path: Path) -> None:
    nowhere = tmp_path / "optimum-cli"
    for path in (nowhere, tmp_path):  # a folder is no program
        with pytest.raises(SystemExit, match=f"there is no program {path}: `make bench-int4` installs it"):
            run_main("int4", "--pair", "tiny", "--optimum", path, tmp_path / "int4")
    nowhere.touch()  # no program either
    with pytest.raises(SystemExit, match="there is no program"):
        run_main("int4", "--pair", "tiny", "--optimum", nowhere, tmp_path / "int4")
