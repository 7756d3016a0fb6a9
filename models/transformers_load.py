"""Loading a transformers model, and refusing at load what can't be rolled back, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from draftd.ipc.errors import CorruptModel, EngineFailed, InvalidConfig, ModelNotFound, UnsupportedModel
from draftd.models.attention import use_grouped
from draftd.models.base import Span, Target
from draftd.models.packed import can_pack, pack

KNOWN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
WEIGHTS = ("*.safetensors", "*.bin")
# How torch words it; the second to fourth where the driver fails.
GPU_TROUBLE = ("CUDA error", "CUDA unknown error", "CUDA driver", "No CUDA GPUs", "HIP error")
TOLERANCE = {torch.float32: 0.01, torch.bfloat16: 0.3, torch.float16: 0.3}  # of the logits' own spread


def load_model(
    path: Path,
    dtype: str,
    device: str,
    device_map: str | dict[str, Any] | None,
    progress: Callable[[float], None],
) -> Any:
    """A model in evaluation mode, on its devices; see TransformersTarget.load for the errors."""
    config = read_config(path)
    if reason := why_not(config):
        raise UnsupportedModel(f"{path} can't be a target: {reason}")
    place = _place(device)
    softcap = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    options: dict[str, Any] = {"dtype": _dtype(dtype), "local_files_only": True, "output_loading_info": True}
    if softcap:
        options["attn_implementation"] = "eager"  # sdpa has no softcap
    if device_map or place.type != "cpu":
        options["device_map"] = device_map or {"": place}
    try:
        with _progress(progress):
            loaded: Any = AutoModelForCausalLM.from_pretrained(path, config=config, **options)
    except (torch.OutOfMemoryError, MemoryError):
        raise EngineFailed(f"not enough memory for {path}: use a smaller model or a device map") from None
    except (OSError, SafetensorError, RuntimeError) as error:
        _blame_gpu(path, error)
        raise CorruptModel(f"{path} can't be read: {_line(error)}; fetch it again") from error
    except ValueError as error:
        raise UnsupportedModel(f"{path} can't be loaded: {_line(error)}") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CorruptModel(f"{path} lacks {len(missing)} weights, {missing[0]} among them: fetch it again")
    if can_pack(model):
        pack(model)
    use_grouped(model)
    keep_rows_apart(model)
    return model.eval()


def keep_rows_apart(model: Any) -> None:
    """Leave which rows are wanted where it is: a model on several GPUs has its inputs moved to one of them.

    Its last layers mostly are on another, where rows can be picked by indices of their own GPU or the CPU's.
    """
    if (hook := getattr(model, "_hf_hook", None)) is not None:
        hook.skip_keys = {*(hook.skip_keys or ()), "logits_to_keep"}


def read_config(path: Path) -> PretrainedConfig:
    """The model's configuration; ModelNotFound and CorruptModel name the file that is the trouble."""
    if not (path / "config.json").is_file():
        raise ModelNotFound(f"{path} holds no transformers model: config.json is not there")
    if not any(file for pattern in WEIGHTS for file in path.glob(pattern)):
        raise ModelNotFound(f"{path} holds no weights: there is no *.safetensors in it")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except OSError as error:
        raise CorruptModel(f"{path / 'config.json'} can't be read: {_line(error)}") from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(f"transformers doesn't know the model in {path}: {_line(error)}") from error
    return config


def why_not(config: PretrainedConfig) -> str:
    """Why a model can't be a target, as far as its configuration tells; empty if nothing says so."""
    kind = config.model_type
    if config.is_encoder_decoder:
        return f"{kind} is an encoder-decoder, and only decoder-only models can continue a sequence"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"{kind} is not a causal language model"
    classes = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model_class = classes[0] if isinstance(classes, (list, tuple)) else classes
    text = config.get_text_config(decoder=True)
    if getattr(model_class, "_is_stateful", False):
        return f"{kind} keeps a recurrent state, which can't be rolled back"
    others = sorted(set(getattr(text, "layer_types", None) or ()) - KNOWN_LAYERS)
    if others:
        return f"{kind} has layers of type {', '.join(others)}, whose state can't be rolled back"
    return ""


def longest_context(config: PretrainedConfig) -> int:
    """Positions up to which the model's rotary frequencies, learnt positions and scales hold and stay."""
    longest = getattr(config, "max_position_embeddings", None) or 1 << 30
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        # Beyond this they depend on the longest sequence of a forward, so one request would change another.
        longest = min(longest, rope.get("original_max_position_embeddings") or longest)
    if getattr(config, "attn_temperature_tuning", False):
        # Llama 4 scales queries from there on, by positions that the library counts from the least of a pass.
        longest = min(longest, getattr(config, "floor_scale", longest) - 1)
    return int(longest)


def only_layer_type(config: PretrainedConfig) -> str:
    """The type of all layers where a configuration doesn't list them."""
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) else "full_attention"


@torch.inference_mode()
def check_rollback(target: Target, model: Any, path: Path) -> None:
    """Roll a short sequence back, go on beside a second one, and compare with the library's own forward.

    Leaves the slots empty. Raises UnsupportedModel, or EngineFailed where memory ran out.
    """
    tokens = [(7 * at + 3) % target.vocab for at in range(min(20, target.context))]
    # The second is wider than what the first goes on with: a model that takes all to end together shows it.
    held, wide = len(tokens) * 7 // 10, len(tokens) * 9 // 20
    other = 1 if target.slots > 1 else 0
    device = model.get_input_embeddings().weight.device
    try:
        own = model(torch.tensor([tokens], device=device), use_cache=False)
        expected = own.logits[0].float().cpu().numpy()
        target.forward([Span(0, 0, tokens[:held], 1)])
        target.forward([Span(0, held, tokens[: len(tokens) - held], 1)])
        target.truncate(0, held)
        spans = [Span(0, held, tokens[held:], len(tokens) - held), Span(other, 0, tokens[:wide], wide)]
        spans = spans[: other + 1]
        found = np.concatenate(target.forward(spans))
    except (torch.OutOfMemoryError, MemoryError):
        raise EngineFailed(f"not enough memory to run {path}: use fewer slots or a smaller context") from None
    except Exception as error:  # whatever a model's code raises when it's given a cache that isn't its own
        _blame_gpu(path, error)
        raise UnsupportedModel(
            f"{path} can't be a target: {type(model).__name__} doesn't run on a slot cache: {_line(error)}"
        ) from error
    expected = np.concatenate([expected[held:], expected[:wide]][: other + 1])
    difference = float(np.sqrt(np.mean((found - expected) ** 2)) / np.std(expected))
    if not difference <= TOLERANCE[model.dtype]:
        raise UnsupportedModel(
            f"{path} can't be a target: after a rollback the logits of {type(model).__name__} are off by "
            f"{difference:.2g} of their spread: it keeps state, or makes a mask, that is not in its cache"
        )
    for slot in {0, other}:
        target.truncate(slot, 0)


def _place(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise InvalidConfig(f"there is no device {device}: use auto, cpu, cuda or cuda:N")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InvalidConfig(f"there is no {device} here: torch sees {torch.cuda.device_count()} CUDA devices")
    return place


def _dtype(name: str) -> torch.dtype:
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}
    if name not in dtypes:
        raise InvalidConfig(f"there is no dtype {name} for a target: use {', '.join(dtypes)}")
    return dtypes[name]


def _blame_gpu(path: Path, error: Exception) -> None:
    """EngineFailed where the trouble is a GPU's and not the model's: one that is not there, busy or full."""
    if any(words in str(error) for words in GPU_TROUBLE):
        mend = "see what else runs there, or set device or device_map"
        raise EngineFailed(f"{path} can't run on this GPU: {_line(error)}; {mend}") from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")


@contextmanager
def _progress(progress: Callable[[float], None]) -> Iterator[None]:
    """Send the library's progress over the weights to `progress` instead of to a bar on the terminal."""

    class Bar:
        def __init__(self, items: Any, **_: Any) -> None:
            self.items = items

        def __iter__(self) -> Iterator[Any]:
            for number, item in enumerate(self.items):
                progress(number / len(self.items))
                yield item

    previous = logging.set_tqdm_hook(lambda factory, args, kwargs: Bar(*args, **kwargs))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)
