"""A GGUF file written again in other weight types, which may suit this machine better than its own."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from draftd.ipc.errors import CorruptModel, DiskFull, InvalidConfig, UnsupportedModel
from draftd.models import native
from draftd.models.gguf_tensors import Tensor, block, kind_name, read_tensors, row_bytes

_MARGIN = 4 << 20  # bytes of disk that must stay free beside the file


@dataclass(frozen=True, slots=True)
class Recipe:
    """The ggml types that a file's matrices, output head and embedding get, and llama.cpp's file type.

    A file without an output head of its own uses the embedding as one, which then gets the head's type.
    """

    name: str
    ftype: int
    body: int
    output: int
    embedding: int
    mixed: bool = False  # llama.cpp's own mix: it gives some of the matrices wider types


def _recipe(name: str, ftype: int, body: int, output: int) -> Recipe:
    return Recipe(name, ftype, body, output, body)


RECIPES = (
    _recipe("Q4_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q4_0),
    _recipe(
        "Q4_0+Q8_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q8_0
    ),
    _recipe(
        "Q4_0+Q6_K", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, llama_cpp.GGML_TYPE_Q4_0, llama_cpp.GGML_TYPE_Q6_K
    ),
    _recipe(
        "Q4_K+Q6_K", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S, llama_cpp.GGML_TYPE_Q4_K, llama_cpp.GGML_TYPE_Q6_K
    ),
    _recipe("Q5_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_0, llama_cpp.GGML_TYPE_Q5_0, llama_cpp.GGML_TYPE_Q5_0),
    _recipe("Q8_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, llama_cpp.GGML_TYPE_Q8_0, llama_cpp.GGML_TYPE_Q8_0),
)  # IQ4_NL is not among them: it took 400 seconds where Q4_0 took 10

SMALLER = (  # than a draft should be; what a target's answers lose by them, `draftd bench --quality` tells
    Recipe(
        "Q3_K_M",
        llama_cpp.LLAMA_FTYPE_MOSTLY_Q3_K_M,
        llama_cpp.GGML_TYPE_Q3_K,
        llama_cpp.GGML_TYPE_Q6_K,
        llama_cpp.GGML_TYPE_Q3_K,
        mixed=True,
    ),
    Recipe(
        "Q2_K",
        llama_cpp.LLAMA_FTYPE_MOSTLY_Q2_K,
        llama_cpp.GGML_TYPE_Q2_K,
        llama_cpp.GGML_TYPE_Q6_K,
        llama_cpp.GGML_TYPE_Q2_K,
        mixed=True,
    ),
)
BY_NAME = {recipe.name: recipe for recipe in (*RECIPES, *SMALLER)}


def unfit(tensors: Sequence[Tensor], recipe: Recipe) -> str:
    """Why this recipe makes no sense for a file of these tensors, or empty."""
    planned = [(tensor, _kind(tensor, tensors, recipe)) for tensor in tensors if tensor.is_matrix]
    total = sum(tensor.elements for tensor, _ in planned)
    if not total:
        return "the file holds no matrices"
    misfits = [(tensor, kind) for tensor, kind in planned if tensor.columns % block(kind)]
    forced = [pair for pair in misfits if pair[0].name in ("output.weight", "token_embd.weight")]
    # llama.cpp falls back to a wider type for the others, so a few do no harm
    if forced or sum(tensor.elements for tensor, _ in misfits) > total / 2:
        tensor, kind = (forced or misfits)[0]
        return f"rows of {tensor.columns} do not divide into {kind_name(kind)}'s blocks of {block(kind)}"
    if all(tensor.kind == kind for tensor, kind in planned):
        return "the file is of these types already"
    return ""


def expected_bytes(tensors: Sequence[Tensor], recipe: Recipe) -> int:
    """About how large the file becomes, its header left out."""
    total = 0
    for tensor in tensors:
        kind = _kind(tensor, tensors, recipe) if tensor.is_matrix else tensor.kind
        if tensor.columns % block(kind):
            kind = llama_cpp.GGML_TYPE_F16
        total += row_bytes(kind, tensor.columns) * (tensor.elements // tensor.columns)
    return total


def quantize(source: Path, out: Path, recipe: Recipe, threads: int = 1) -> None:
    """Write `source` as `out` in a recipe's types; `out` appears whole or not at all.

    Raises ModelNotFound, CorruptModel, UnsupportedModel (the recipe does not fit), DiskFull, InvalidConfig.
    """
    tensors = read_tensors(source)
    if reason := unfit(tensors, recipe):
        raise UnsupportedModel(f"{source.name} cannot be quantised as {recipe.name}: {reason}")
    needed = expected_bytes(tensors, recipe) + source.stat().st_size // 20  # the header: a vocabulary
    with staged(out, needed) as staging:
        if failure := native.run(_quantize, source, staging, recipe, threads, _tied(tensors)):
            # llama.cpp tells no full disk from a bad file; what is written by then does
            written = staging.stat().st_size if staging.exists() else 0
            check_room(out.parent, needed - written)
            raise CorruptModel(
                f"llama.cpp cannot quantise {source} as {recipe.name}: {failure}; "
                "`draftd models verify` tells whether the file is whole"
            )


@contextmanager
def staged(out: Path, needed: int) -> Iterator[Path]:
    """Where to write a file of about `needed` bytes, which becomes `out` once it is whole.

    Raises DiskFull, InvalidConfig.
    """
    staging = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_room(out.parent, needed)
        try:
            yield staging
            staging.replace(out)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        mend = "set cache_dir to a folder of yours"
        raise InvalidConfig(f"cannot write {out}: {error.strerror}; {mend}") from None


def check_room(directory: Path, needed: int) -> None:
    """Raise DiskFull if the disk under a directory has no room for this many bytes."""
    free = shutil.disk_usage(directory).free
    if free < (needed := needed + _MARGIN):
        raise DiskFull(
            f"the disk under {directory} is full: {needed:,} bytes are needed and {free:,} are free; "
            "make room and try again"
        )


def _tied(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.name != "output.weight" for tensor in tensors)


def _kind(tensor: Tensor, tensors: Sequence[Tensor], recipe: Recipe) -> int:
    if tensor.name == "output.weight":
        return recipe.output
    if tensor.name == "token_embd.weight":
        return recipe.output if _tied(tensors) else recipe.embedding
    return recipe.body


def _quantize(source: Path, out: Path, recipe: Recipe, threads: int, tied: bool) -> str:
    """What llama.cpp said when it failed, or empty."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = recipe.ftype
    params.output_tensor_type = recipe.output
    params.token_embedding_type = recipe.output if tied else recipe.embedding
    params.allow_requantize = True
    params.pure = not recipe.mixed
    native.complaints(clear=True)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    return (native.complaints() or f"it gave no reason ({code})") if code else ""
