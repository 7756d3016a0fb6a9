"""Which backend runs a target: from times measured once and the draft that there is now."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from draftd.daemon import backend, loader, tuned
from draftd.daemon.backend import DRAFTED, choose_backend, expected_speed
from draftd.daemon.settings import Settings
from draftd.models.base import Span
from draftd.models.catalog import Model, Pair
from tests.fakes import TableTarget


class Machine:
    """Loads models that take chosen times."""

    def __init__(self, tmp_path: Path) -> None:
        self.loads: list[str] = []
        self.said: list[str] = []
        self.seconds: dict[str, dict[int, float]] = {
            "llama_cpp": {1: 0.05, DRAFTED + 1: 0.20},
            "transformers": {1: 0.20, DRAFTED + 1: 0.20},
        }
        self.draft = 0.005
        self.record: Any = None
        files = {name: tmp_path / f"{name}.gguf" for name in ("target", "draft")}
        for path in files.values():
            path.write_bytes(b"GGUF")
        models = {name: Model(name=name, path=path) for name, path in files.items()}
        self.pair = Pair("p", models["draft"], models["target"], "auto", "")
        self.settings = Settings.model_validate(
            {"state_dir": tmp_path / "state", "cache_dir": tmp_path / "cache", "device": "cpu"}
        )

    def choose(self) -> str:
        return choose_backend(self.pair, self.settings, 1, lambda _, stage: self.said.append(stage))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)

    def load(name: str) -> Any:
        made.loads.append(name)
        return SimpleNamespace(times=made.seconds.get(name, {1: made.draft}), forward=len, close=int)

    monkeypatch.setattr(loader, "load_llama_cpp", lambda *_: (load("llama_cpp"), None))
    monkeypatch.setattr(loader, "load_transformers", lambda *_: (load("transformers"), None))
    monkeypatch.setattr(loader, "open_gguf", lambda *_: load("draft"))
    monkeypatch.setattr(backend, "pass_seconds", lambda model, rows: model.times[rows])
    monkeypatch.setattr(tuned, "find", lambda *_: made.record)
    return made


def figure(milliseconds: float, acceptance: float) -> Any:
    return SimpleNamespace(
        figure=SimpleNamespace(milliseconds=milliseconds, acceptance=acceptance, source="draft"), file=None
    )


def test_a_backend_is_measured_once(machine: Machine) -> None:
    assert machine.choose() == "llama_cpp"
    assert machine.loads == ["draft", "llama_cpp", "transformers"]
    assert [stage.split()[1] for stage in machine.said] == ["llama_cpp", "transformers"]
    machine.loads.clear()
    machine.choose()
    assert machine.loads == []


def test_a_tuned_draft_changes_the_choice_without_measuring_again(machine: Machine) -> None:
    machine.seconds["llama_cpp"] = {1: 0.05, DRAFTED + 1: 0.40}
    machine.draft = 0.5
    assert machine.choose() == "llama_cpp", "no draft pays, and it is faster alone"
    machine.loads.clear()
    machine.record = figure(milliseconds=5.0, acceptance=0.9)
    assert machine.choose() == "transformers", "with this draft the flat backend is"
    machine.record = figure(milliseconds=5.0, acceptance=0.1)
    assert machine.choose() == "llama_cpp", "but not if what it drafts is refused"
    assert machine.loads == []


def test_where_nothing_is_to_draft_the_faster_alone_is_chosen(machine: Machine) -> None:
    machine.seconds["llama_cpp"] = {1: 0.05, DRAFTED + 1: 0.40}
    machine.record = figure(milliseconds=5.0, acceptance=0.9)
    assert machine.choose() == "transformers"
    machine.settings = machine.settings.model_copy(update={"speculate": False})
    assert machine.choose() == "llama_cpp"


def test_another_target_file_is_measured(machine: Machine) -> None:
    machine.choose()
    machine.loads.clear()
    path = machine.pair.target.path
    assert path is not None
    path.write_bytes(b"GGUF, longer")
    machine.choose()
    assert machine.loads == ["llama_cpp", "transformers"]


def test_with_layers_on_a_gpu_all_is_measured_again(machine: Machine) -> None:
    machine.choose()
    machine.loads.clear()
    machine.settings = machine.settings.model_copy(update={"gpu_layers": -1})
    machine.seconds["transformers"] = {1: 0.01, DRAFTED + 1: 0.01}
    assert machine.choose() == "transformers", "as it is now, and not as it was without"
    assert machine.loads == ["draft", "llama_cpp", "transformers"]


@pytest.mark.parametrize(
    "text", ["{", '{"qwen/1": {"llama_cpp": 14.1}}', '{"version": 2, "drafts": {"a": -1}}']
)
def test_a_file_of_no_use_is_replaced(machine: Machine, text: str, caplog: pytest.LogCaptureFixture) -> None:
    machine.settings.state_dir.mkdir()
    file = machine.settings.state_dir / "backend.json"
    file.write_text(text)
    machine.choose()
    assert "damaged or of another version" in caplog.text
    assert '"version": 2' in file.read_text()
    assert machine.loads == ["draft", "llama_cpp", "transformers"]


def test_a_disk_that_takes_and_gives_nothing_costs_warnings(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    (machine.settings.state_dir / "backend.json").mkdir(parents=True)
    assert machine.choose() == "llama_cpp"
    assert "the backends are measured again" in caplog.text
    assert "cannot keep what was measured" in caplog.text


def test_speed_by_hand() -> None:
    passes = {1: 0.1, DRAFTED + 1: 0.2}
    assert expected_speed(passes, 10.0) == pytest.approx(10.0), "drafting too dear: the plain pass"
    assert expected_speed(passes, 0.0, 1.0) == pytest.approx((DRAFTED + 1) / 0.2)
    assert expected_speed({1: 0.1, DRAFTED + 1: 0.1}, 0.0, 0.5) == pytest.approx((2 - 0.5**DRAFTED) / 0.1)


def test_a_pass_is_timed_with_as_many_rows() -> None:
    target = TableTarget(vocab=64)
    target.forward([Span(0, 0, backend.WARM, 1)])
    assert backend.pass_seconds(target, 5) > 0
    assert len(target.held[0]) == len(backend.WARM) + 5
