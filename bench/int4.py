"""OpenVINO's int4 models of a pair: `python bench/int4.py --pair NAME FOLDER`.

optimum-cli writes FOLDER/target and FOLDER/draft, which side_by_side.py compares by `--int4 FOLDER`. They are
made of the pair's GGUFs as transformers has them, so they are quantised twice. What an earlier run made of
the same weights is kept. A draft that is the target's own file is a link to the target.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import documents
from documents import tell

from draftd.daemon.settings import load as load_settings
from draftd.models.catalog import load_catalog
from draftd.models.convert import converted_path, ensure_transformers
from draftd.models.fetch import ensure

HOW = ("--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", "64")
DTYPE = "bfloat16"  # of the weights that are quantised
SOURCE = "source.txt"  # in an export: what it was made of, and how
UNFINISHED = ".new"  # in the folder: an export on its way


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--optimum", default="optimum-cli", help="its path, in an environment of its own")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where target and draft go")
    options = parser.parse_args()
    folder: Path = options.folder
    optimum = shutil.which(options.optimum)
    if optimum is None:
        sys.exit(
            f"there is no program {options.optimum}: `make bench-int4` installs it, or "
            "`pip install 'optimum-intel[openvino]'` in an environment that --optimum names"
        )
    pair, cache = load_catalog().pair(options.pair), load_settings(None).cache_dir
    if pair.draft is None:
        sys.exit(f"the pair {pair.name} has no draft, and side_by_side.py compares only pairs that have one")
    models = {"target": pair.target, "draft": pair.draft}
    if others := others_in(folder, {*models, UNFINISHED}):
        sys.exit(f"{folder} holds something else ({others[0]}): name an empty folder, or a new one")
    files = {part: ensure(model, cache) for part, model in models.items()}
    sources = {
        part: f"{converted_path(file, cache, DTYPE).name} {' '.join(HOW)}\n" for part, file in files.items()
    }
    for part, source in sources.items():
        if (folder / part).exists() and made_of(folder / part) != source:
            sys.exit(
                f"{folder / part} is no export of {files[part].name} by this program: remove it, or name "
                "another folder"
            )
    for part, file in files.items():
        place = folder / part
        if made_of(place) == sources[part]:
            tell(f"{place} is there and is kept")
        elif part == "draft" and file == files["target"]:
            place.symlink_to("target")
            tell(f"{place} is a link to the target, whose file is the draft's too")
        else:
            tell(f"{place}: exporting {file.name}")
            export(optimum, ensure_transformers(file, cache, DTYPE), place, sources[part])
    print(f"python bench/side_by_side.py --int4 {folder} compares them")


def others_in(folder: Path, own: set[str]) -> list[str]:
    """What a folder holds beside its own; NotADirectoryError if it is a file."""
    return sorted({each.name for each in folder.iterdir()} - own) if folder.exists() else []


def made_of(place: Path) -> str | None:
    """What an export says it was made of; None if this program made none there."""
    said = place / SOURCE
    return said.read_text("utf-8") if said.is_file() else None


def export(optimum: str, model: Path, place: Path, source: str) -> None:
    """Have optimum-cli write a transformers directory as int4; it is in its place only once it is whole."""
    unfinished = place.with_name(UNFINISHED)
    if unfinished.exists():  # of a run that was killed
        shutil.rmtree(unfinished)
    place.parent.mkdir(parents=True, exist_ok=True)
    command = [optimum, "export", "openvino", "--model", str(model), *HOW, str(unfinished)]
    try:
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        if status:
            how = f"status {status}" if status > 0 else f"signal {-status}, often a lack of memory"
            sys.exit(f"{optimum} ended with {how}, and there is no {place}: what it said is above")
        (unfinished / SOURCE).write_text(source, "utf-8")
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    documents.run(main)
