"""What a pair needs, from real files of tiny models, and what is chosen within what there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import pytest
import torch
from typer.testing import CliRunner

from draftd.daemon import budget, machine, plan_cli
from draftd.daemon.budget import Budget, Room
from draftd.daemon.cli import app
from draftd.daemon.model_files import read_shape
from draftd.daemon.settings import Settings, load
from draftd.ipc.errors import OutOfMemory
from draftd.models.catalog import Pair, load_catalog
from tests.daemon.conftest import Daemon, Serve
from tests.gguf_header import SHAPE, write_header

PLENTY = Room(10**12, 0)
ASKED = budget.offloads


@pytest.fixture
def settings(tmp_path: Path, tiny_files: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A pair `tiny` of GGUF files that either backend may run."""
    catalog = tmp_path / "catalog.toml"
    files = {"target": tiny_files / "same.gguf", "draft": tiny_files / "draft.gguf"}
    models = "".join(f'[models.{name}]\npath = "{file}"\n' for name, file in files.items())
    catalog.write_text(models + '[pairs.tiny]\ntarget = "target"\ndraft = "draft"\n')
    monkeypatch.setenv("DRAFTD_CATALOG", str(catalog))
    monkeypatch.setenv("DRAFTD_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("DRAFTD_CACHE_DIR", str(tmp_path))
    return load(pair="tiny", context=400, slots=4)


@pytest.fixture(autouse=True)
def _offloading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A llama.cpp that was built for a GPU."""
    monkeypatch.setattr(budget, "offloads", lambda: True)


def tiny() -> Pair:
    return load_catalog().pair("tiny")


def parts(found: Budget) -> dict[str, int]:
    return {item.name: item.memory for item in found.items}


def test_weights_and_caches_by_context_and_slots(settings: Settings, tiny_files: Path) -> None:
    shape = read_shape(tiny_files / "same.gguf")
    assert shape is not None
    transformers, llama_cpp = budget.asked(tiny(), settings, PLENTY)
    assert (transformers.backend, llama_cpp.backend) == ("transformers", "llama_cpp")
    assert shape.full
    position = 2 * shape.layers * shape.kv_heads * shape.head_width * 2  # bytes
    assert parts(transformers)["target: keys and values"] == 4 * 400 * position
    assert parts(llama_cpp)["target: keys and values"] == 4 * 400 * position * 2
    assert parts(llama_cpp)["target: weights"] == (tiny_files / "same.gguf").stat().st_size
    assert parts(transformers)["target: weights"] >= 2 * shape.elements
    wide = settings.model_copy(update={"dtype": "float32", "slots": 8, "backend": "transformers"})
    (found,) = budget.asked(tiny(), wide, PLENTY)
    assert parts(found)["target: keys and values"] == 8 * 400 * position * 2
    alone = settings.model_copy(update={"speculate": False})
    assert not any("draft:" in name for name in parts(budget.asked(tiny(), alone, PLENTY)[0]))


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = tmp_path / "x.gguf", []

    def read(path: Path) -> None:
        reads.append(path)

    monkeypatch.setattr(budget, "read_shape", read)
    for changed in (1, 2):
        write_header(file, SHAPE)
        os.utime(file, (changed, changed))
        for _ in range(3):
            budget._shape(file)
        assert len(reads) == changed


def test_the_best_keeps_what_was_asked_where_it_fits_and_gives_up_slots_first(settings: Settings) -> None:
    big = settings.model_copy(update={"backend": "llama_cpp", "slots": 64, "context": 512})
    (asked,) = budget.asked(tiny(), big, PLENTY)
    assert budget.best(tiny(), big, PLENTY) == asked
    less = budget.best(tiny(), big, Room(asked.memory - 1, 0))
    assert less is not None
    assert (less.slots, less.context) == (32, 512)
    assert less.fits(Room(asked.memory - 1, 0))
    assert budget.best(tiny(), big, Room(10**6, 0)) is None


def test_the_backend_that_fits_is_taken_and_nothing_else_changes(settings: Settings) -> None:
    transformers, llama_cpp = budget.asked(tiny(), settings, PLENTY)
    assert llama_cpp.memory < transformers.memory
    assert budget.check(tiny(), settings, PLENTY) == settings
    forced = budget.check(tiny(), settings, Room(llama_cpp.memory, 0))
    assert forced == settings.model_copy(update={"backend": "llama_cpp"})


def test_a_gpu_takes_as_many_layers_as_fit(settings: Settings) -> None:
    on_llama = settings.model_copy(update={"backend": "llama_cpp", "speculate": False})
    whole = budget.best(tiny(), on_llama, Room(10**12, 10**12))
    assert whole is not None
    assert whole.gpu_layers == -1
    assert whole.gpu > 0
    part = budget.best(tiny(), on_llama, Room(10**12, whole.gpu - 1))
    assert part is not None
    assert part.gpu_layers > 0
    assert 0 < part.gpu < whole.gpu
    none = budget.best(tiny(), on_llama, Room(10**12, 1))
    assert none is not None
    assert none.gpu_layers == 0
    assert "gpu_layers" not in budget.options(none)
    on_torch = settings.model_copy(update={"backend": "transformers", "device": "cuda"})
    (whole,) = budget.asked(tiny(), on_torch, Room(0, 1))
    assert parts(whole)["target: weights"] == 0


def test_what_cannot_fit_is_refused_with_the_table(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutOfMemory, match="choose a smaller pair"):
        budget.check(tiny(), settings, Room(10**6, 0))
    err = capfd.readouterr().err
    assert "target: keys and values" in err
    assert "to be had now" in err


def test_the_command_shows_the_table_and_its_status_says_whether_it_fits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure_room", lambda _: PLENTY)
    run = CliRunner().invoke(app, ["plan", "--pair", "tiny", "--slots", "3"])
    assert run.exit_code == 0, run.output
    assert "llama_cpp, 3 slots" in run.output
    assert "fits" in run.output
    monkeypatch.setattr(budget, "measure_room", lambda _: Room(10**6, 0))
    run = CliRunner().invoke(app, ["plan", "--pair", "tiny", "--json"])
    assert isinstance(run.exception, OutOfMemory)


def test_a_running_daemon_is_told_of(
    settings: Settings, shared: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.wait_ready()
    monkeypatch.setenv("DRAFTD_ENDPOINT", shared.endpoint)
    run = CliRunner().invoke(app, ["plan", "--pair", "tiny"])
    assert re.search(r"\na daemon runs here and holds [1-9]\d* MB, which is not to be had now", run.output)
    monkeypatch.setenv("DRAFTD_ENDPOINT", shared.endpoint + ".none")
    assert "a daemon runs here" not in CliRunner().invoke(app, ["plan", "--pair", "tiny"]).output


@pytest.mark.parametrize(("host", "taken"), [("127.0.0.1", 7), ("[::1]", 7), ("10.0.0.2", 0)])
def test_what_a_daemon_of_another_machine_holds_is_none_of_this_ones(
    monkeypatch: pytest.MonkeyPatch, host: str, taken: int
) -> None:
    told = SimpleNamespace(memory={"front": 3, "engine": 4})
    client = nullcontext(SimpleNamespace(status=lambda full: told))
    monkeypatch.setattr(plan_cli, "Client", lambda address, timeout: client)
    assert plan_cli.held(load(endpoint=f"tcp://{host}:5555")) == taken


def test_of_models_that_are_not_here_no_fit_is_promised(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "measure_room", lambda _: PLENTY)
    ask = ["plan", "--pair", "qwen2.5-coder", "--backend", "llama_cpp"]
    run = CliRunner().invoke(app, ask)
    assert run.exit_code == 0, run.output
    assert "fits, as far as it is known\n" in run.output
    assert "`draftd models pull qwen2.5-coder`, then plan again" in run.output
    assert "the fastest that fits" not in run.output
    pair = load_catalog().pair("qwen2.5-coder")
    assert pair.draft is not None
    (asked,) = budget.asked(pair, load(pair=pair.name, backend="llama_cpp"), PLENTY)
    assert parts(asked)["draft: weights"] == pair.draft.size
    told = json.loads(CliRunner().invoke(app, [*ask, "--json"]).output)
    assert told["missing"] == [model.name for model in pair.models]
    assert told["best"] is None


def test_serve_refuses_with_the_same_table_and_status_4(serve: Serve, tmp_path: Path) -> None:
    write_header(tmp_path / "huge.gguf", SHAPE)
    huge = {"context": "1048576", "slots": "256", "backend": "llama_cpp"}
    daemon = serve(target=tmp_path / "huge.gguf", draft=None, wait=False, **huge)
    assert daemon.process.wait(60) == 4
    lines = daemon.lines.read_text()
    assert "target: keys and values" in lines
    assert lines.strip().splitlines()[-1].startswith("draftd: tiny needs 618")


def test_layers_that_do_not_fit_a_gpu_are_advised_against(settings: Settings) -> None:
    """The draft leaves the GPU with the target: both have the setting's layers."""
    greedy = settings.model_copy(update={"backend": "llama_cpp", "gpu_layers": -1})
    for room in (Room(10**12, 1), Room(10**12, 0)):
        better = budget.best(tiny(), greedy, room)
        assert better is not None
        assert (better.gpu_layers, better.gpu) == (0, 0)
        with pytest.raises(OutOfMemory, match=r"of the GPU .* and gpu_layers = 0, which needs"):
            budget.check(tiny(), greedy, room)
    held = budget.best(tiny(), greedy, Room(10**12, 10**12))
    assert held is not None
    assert held.gpu_layers == -1
    assert "gpu_layers" not in budget.options(held), "as the settings have it"


def test_a_gpu_whose_memory_cannot_be_read_is_no_reason_to_refuse(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert budget.measure_room(settings).gpu is None
    room = Room(10**12, None)
    greedy = settings.model_copy(update={"backend": "llama_cpp", "gpu_layers": -1})
    assert budget.check(tiny(), greedy, room) == greedy
    (asked,) = budget.asked(tiny(), greedy, room)
    assert budget.table(asked, room).splitlines()[-1].endswith("unknown")
    with pytest.raises(OutOfMemory, match="of memory"):
        budget.check(tiny(), greedy, Room(10**6, None))


def test_of_several_gpus_those_count_that_are_used(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "100\n200\n"))
    for change, free in (
        ({"device": "auto"}, 100),
        ({"device": "cuda:1"}, 200),
        ({"device_map": "balanced"}, 300),
        ({"backend": "llama_cpp"}, 300),
    ):
        room = budget.measure_room(settings.model_copy(update=change))
        assert room.gpu == free * 2**20, change


@pytest.mark.parametrize(("visible", "free"), [("1", 200), ("1,0", 200), ("GPU-5a", None), ("-1", None)])
def test_of_several_gpus_those_count_that_cuda_sees(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, visible: str, free: int | None
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "100\n200\n"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert budget.measure_room(settings).gpu == (None if free is None else free * 2**20)


def test_layers_stay_in_memory_where_llama_cpp_has_no_gpu(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = settings.model_copy(update={"backend": "llama_cpp", "gpu_layers": -1})
    for room in (Room(10**12, None), Room(10**12, 0), Room(10**12, 10**12)):
        monkeypatch.setattr(budget, "offloads", lambda: False)
        (asked,) = budget.asked(tiny(), greedy, room)
        (plain,) = budget.asked(tiny(), greedy.model_copy(update={"gpu_layers": 0}), room)
        assert (asked.items, asked.gpu) == (plain.items, 0)
        better = budget.best(tiny(), greedy, room)
        assert better == asked
        assert budget.options(better).endswith(" and gpu_layers = 0"), "what llama.cpp ignores costs speed"


def test_weights_stay_in_memory_where_torch_can_use_no_gpu(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(10**12, 1)
    on_torch = settings.model_copy(update={"backend": "transformers"})
    monkeypatch.setattr(machine, "cuda", lambda: True)
    with pytest.raises(OutOfMemory, match="of the GPU"):
        budget.check(tiny(), on_torch, room)
    monkeypatch.setattr(machine, "cuda", lambda: False)
    assert budget.check(tiny(), on_torch, room) == on_torch
    (asked,) = budget.asked(tiny(), on_torch, room)
    (plain,) = budget.asked(tiny(), on_torch.model_copy(update={"device": "cpu"}), room)
    assert (asked.items, asked.gpu) == (plain.items, 0)
    (named,) = budget.asked(tiny(), on_torch.model_copy(update={"device": "cuda"}), room)
    assert named.gpu > 0, "the loader says what is wrong with a device that is not there"


def test_weights_on_a_gpu_that_only_torch_knows_take_no_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_torch = settings.model_copy(update={"backend": "transformers"})
    monkeypatch.setattr(machine, "cuda", lambda: True)
    (there,) = budget.asked(tiny(), on_torch, Room(10**12, None))
    assert there.gpu > 0
    assert budget.check(tiny(), on_torch, Room(there.memory, None)) == on_torch


def test_both_libraries_are_asked_for_their_gpu() -> None:
    assert ASKED() == llama_cpp.llama_supports_gpu_offload()
    assert machine.cuda() == torch.cuda.is_available()
