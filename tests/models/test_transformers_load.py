"""Loading a transformers target: where its layers go, progress, and what is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Llama4TextConfig, Qwen2Config

from draftd.ipc.errors import (
    CorruptModel,
    DraftdError,
    EngineFailed,
    InvalidConfig,
    ModelNotFound,
    UnsupportedModel,
)
from draftd.models.base import Span
from draftd.models.transformers import TransformersTarget
from draftd.models.transformers_load import keep_rows_apart, longest_context
from tests.models.targets import TARGET, close, tokens
from tests.models.test_transformers import save
from tests.tiny import fill, write_tiny


def test_a_device_map_places_the_layers(qwen: Path) -> None:
    prompt = tokens(12)
    (expected,) = TransformersTarget.load(qwen, **TARGET).forward([Span(0, 0, prompt, 12)])  # type: ignore[arg-type]
    for device_map in ({"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}):
        target = TransformersTarget.load(qwen, **TARGET, device_map=device_map)  # type: ignore[arg-type]
        (rows,) = target.forward([Span(0, 0, prompt, 12)])
        close(rows, expected)


def test_which_rows_are_wanted_stays_on_the_cpu() -> None:
    """Over several GPUs a model's inputs are moved to one, but rows are picked where its last layers are."""
    operations: Any = pytest.importorskip("accelerate.utils.operations")
    keep_rows_apart(SimpleNamespace())  # a model on one device has no hook
    model = SimpleNamespace(_hf_hook=SimpleNamespace(skip_keys={"past_key_values"}))
    keep_rows_apart(model)
    inputs = {name: torch.ones(1) for name in ("input_ids", "past_key_values", "logits_to_keep")}
    moved = operations.send_to_device(inputs, "meta", skip_keys=model._hf_hook.skip_keys)
    assert [each.device.type for each in moved.values()] == ["meta", "cpu", "cpu"]


def test_a_rope_that_changes_with_length_limits_the_context() -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 512, "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 4.0}
    config = Qwen2Config(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=2048, rope_parameters=rope
    )
    assert longest_context(config) == 512


@pytest.mark.parametrize(("tuned", "context"), [(True, 7), (False, 256)])
def test_a_scale_by_position_limits_the_context(tuned: bool, context: int) -> None:
    config = Llama4TextConfig(
        floor_scale=8, attn_temperature_tuning=tuned, max_position_embeddings=256, num_hidden_layers=2
    )
    assert longest_context(config) == context


def test_company_changes_no_row_of_a_llama_4(tmp_path: Path) -> None:
    """The library counts the positions of all that share a pass from the least one."""
    layers: dict[str, Any] = {"no_rope_layers": [1, 0], "moe_layers": [], "intermediate_size_mlp": 128}
    save(tmp_path, "llama4_text", **layers, floor_scale=24, attention_chunk_size=64)
    target = TransformersTarget.load(tmp_path, **TARGET)  # type: ignore[arg-type]
    *before, last = tokens(target.context)
    target.forward([Span(0, 0, before, 0)])
    (alone,) = target.forward([Span(0, len(before), [last], 1)])
    found, _ = target.forward([Span(0, len(before), [last], 1), Span(1, 0, tokens(9), 1)])
    close(found, alone)


SMALL = {"vocab_size": 272, "hidden_size": 64}
MAMBA = {"state_size": 4, "vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("mamba", MAMBA, "recurrent state"),
        ("rwkv", {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2}, "recurrent state"),
        ("jamba", {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 2}, "can't be rolled back"),
        ("lfm2", {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}, "type conv"),
        ("t5", {"vocab_size": 272, "d_model": 32}, "encoder-decoder"),
        ("vit", {}, "not a causal language model"),
    ],
)
def test_models_without_rollback_are_refused_by_their_configuration(
    tmp_path: Path, family: str, options: dict[str, Any], reason: str
) -> None:
    AutoConfig.for_model(family, **options).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UnsupportedModel, match=reason):
        TransformersTarget.load(tmp_path, slots=1, context=64)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bloom", {"vocab_size": 272, "hidden_size": 32, "n_head": 2, "n_layer": 2}),  # makes its own mask
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 2} | SMALL),
        ("bert", {"vocab_size": 272, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}),
    ],
)
def test_models_that_fail_the_rollback_at_load_are_refused(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options))  # type: ignore[no-untyped-call]
    fill(model, seed=0)
    model.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"can't be a target: .*(slot cache|after a rollback)"):
        TransformersTarget.load(tmp_path, **TARGET)  # type: ignore[arg-type]


def _remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def _truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _deepen(path: Path) -> None:
    """Ask for a layer that the file has no weights of."""
    config = json.loads((path / "config.json").read_text())
    config |= {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (path / "config.json").write_text(json.dumps(config))


def _rename(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (_remove("config.json"), ModelNotFound, "config.json is not there"),
        (_remove("model.safetensors"), ModelNotFound, "holds no weights"),
        (_truncate, CorruptModel, "can't be read"),
        (_deepen, CorruptModel, "lacks 12 weights"),
        (_rename, UnsupportedModel, "nonesuch"),
        (lambda path: (path / "config.json").write_text("{"), CorruptModel, "config.json"),
    ],
)
def test_a_damaged_directory_is_refused_with_the_reason(
    tmp_path: Path, harm: Callable[[Path], None], error: type[DraftdError], words: str
) -> None:
    write_tiny(tmp_path)
    harm(tmp_path)
    with pytest.raises(error, match=words):
        TransformersTarget.load(tmp_path, **TARGET)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"dtype": "int3"}, {"device": "abacus"}, {"device": "xpu"}, {"device": "cuda:99"}]
)
def test_wrong_settings_are_named(qwen: Path, options: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(options.values()))):
        TransformersTarget.load(qwen, **(TARGET | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("owner", "name"), [(AutoModelForCausalLM, "from_pretrained"), (TransformersTarget, "forward")]
)
def test_a_gpus_trouble_is_not_the_models(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: invalid device ordinal\nFor debugging consider ...")

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(EngineFailed, match=r"can't run on this GPU: CUDA error: invalid device ordinal; see"):
        TransformersTarget.load(qwen, **TARGET)  # type: ignore[arg-type]


def test_loading_reports_its_progress(qwen: Path) -> None:
    told: list[tuple[float, str]] = []
    TransformersTarget.load(qwen, **TARGET, report=lambda *what: told.append(what))  # type: ignore[arg-type]
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) > 10
