"""From a GGUF file to llama.cpp's model and context, or to a sentence that says why not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import psutil

from draftd.ipc.errors import CorruptModel, ModelNotFound, UnsupportedModel
from draftd.models import native

Report = Callable[[float], object]  # the share of the weights that is loaded, 0 to 1

_BATCH = 2048  # tokens one llama_decode takes at most; more are fed in several
_GGML_F32 = 0  # both ggml_type and llama_ftype
_FLASH_AUTO, _FLASH_OFF = -1, 0


def load_model(path: Path, *, vocab_only: bool = False, gpu_layers: int = 0, extra_bufts: bool = True,
               report: Report | None = None) -> int:  # fmt: skip
    """The llama_model * of a GGUF; call on llama.cpp's thread, free with llama_model_free."""
    # What goes to a GPU needs no memory here, whose size then says little.
    in_memory = not vocab_only and not (gpu_layers and llama_cpp.llama_supports_gpu_offload())
    _check_file(path, in_memory)
    failure: list[BaseException] = []

    @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
    def progress(fraction: float, _: ctypes.c_void_p) -> bool:
        try:
            if report is not None:
                report(fraction)
        except BaseException as error:  # raised again below: nothing may pass through C
            failure.append(error)
        return not failure

    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = gpu_layers
    params.use_extra_bufts = extra_bufts
    params.progress_callback = progress
    native.complaints(clear=True)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if failure:
        if model:
            llama_cpp.llama_model_free(model)
        raise failure[0]
    if not model:
        raise _load_error(path, native.complaints())
    return int(model)


def open_context(
    path: Path, model: int, slots: int, context: int, threads: int, gpu_layers: int
) -> tuple[int, int]:
    """The llama_context * of a model, and the positions a slot has; call on llama.cpp's thread."""
    if reason := _no_rollback(model):
        raise UnsupportedModel(f"{path.name} cannot be used with speculation: {reason}")
    length = min(context, llama_cpp.llama_model_n_ctx_train(model))
    native.complaints(clear=True)
    handle = llama_cpp.llama_init_from_model(
        model, _context_params(model, slots, length, threads, gpu_layers)
    )
    if not handle:
        reason = native.complaints() or "it gave no reason"
        raise UnsupportedModel(
            f"llama.cpp cannot make {slots} slots of {length} positions for {path.name}: {reason}; "
            "if memory is short, set fewer slots or a smaller context"
        )
    return int(handle), length


def _context_params(model: int, slots: int, length: int, threads: int, gpu_layers: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = slots * length
    params.n_seq_max = slots
    params.n_batch = _BATCH
    params.n_threads = params.n_threads_batch = threads
    # On a CPU a pass of 5 to 9 rows takes a fifth less without flash attention at 300 positions, and as
    # long at 1800.
    params.flash_attn_type = _FLASH_AUTO if gpu_layers else _FLASH_OFF
    # A buffer of keys and values for each slot. In one for all, a slot's logits depend on where its cells lie
    # among the others' (by 0.4 for a 1.5B model, where buffers of their own are equal to the bit), and every
    # pass attends to what other slots hold. The price: spans of different lengths are cut into equal pieces.
    params.kv_unified = False
    params.swa_full = True
    if full_precision(model):
        # keep fp32 all the way: the cache is fp16 otherwise, and flash attention rounds to fp16 anyway
        params.type_k = params.type_v = _GGML_F32
        params.flash_attn_type = _FLASH_OFF
    return params


def full_precision(model: int) -> bool:
    """Are the weights in fp32, as they were trained?"""
    return bool(llama_cpp.llama_model_ftype(model) == _GGML_F32)


def _no_rollback(model: int) -> str:
    """Why this model's state cannot be rolled back, or empty."""
    if llama_cpp.llama_model_is_recurrent(model):
        return "its recurrent state cannot be rolled back after a rejected token"
    if llama_cpp.llama_model_is_hybrid(model):
        return "its recurrent layers' state cannot be rolled back after a rejected token"
    if llama_cpp.llama_model_is_diffusion(model):
        return "it is a diffusion model and has no next token"
    if llama_cpp.llama_model_has_encoder(model):
        return "it has an encoder; only decoder-only models can be used"
    return ""


def _check_file(path: Path, in_memory: bool) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        size = path.stat().st_size
    except FileNotFoundError:
        raise ModelNotFound(f"there is no model file {path}: pull the model or correct the path") from None
    except OSError as error:
        raise ModelNotFound(f"cannot read the model file {path}: {error.strerror}") from None
    if magic != b"GGUF":
        raise CorruptModel(f"{path} is not a GGUF file: remove it and pull the model again")
    available = psutil.virtual_memory().available
    if in_memory and size > available:
        raise UnsupportedModel(
            f"{path.name} needs {size / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free: "
            "close other programs or use a smaller model"
        )


def _load_error(path: Path, reason: str) -> CorruptModel | UnsupportedModel:
    if "unknown model architecture" in reason or "unknown pre-tokenizer" in reason:
        return UnsupportedModel(f"this llama.cpp does not know the model in {path}: {reason}")
    if "alloc" in reason and "buffer" in reason:
        return UnsupportedModel(f"there is too little memory for {path}: {reason}")
    why = reason or "llama.cpp gave no reason"
    return CorruptModel(f"{path} is damaged or incomplete: remove it and pull the model again ({why})")
