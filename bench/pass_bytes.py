"""What a pass has to read of a model, from its files."""

from __future__ import annotations

import json
from pathlib import Path

from gguf import GGUFReader
from safetensors import safe_open

from draftd.daemon import tuned
from draftd.daemon.settings import Settings
from draftd.models.catalog import Pair
from draftd.models.convert import ensure_transformers
from draftd.models.fetch import ensure


def target_bytes(pair: Pair, backend: str, settings: Settings) -> int:
    """What a pass of the target reads: its weights, without an embedding that is only looked up."""
    path = ensure(pair.target, settings.cache_dir)
    if backend == "llama_cpp":
        return gguf_bytes(path)
    if not pair.target.is_directory:
        path = ensure_transformers(path, settings.cache_dir, settings.dtype)
    return safetensors_bytes(path)


def draft_bytes(pair: Pair, backend: str, settings: Settings) -> int:
    """The same of the file that drafts here; 0 without one."""
    if pair.draft is not None:
        ensure(pair.draft, settings.cache_dir)
    found = tuned.draft_file(pair, settings, backend)
    return 0 if found is None else gguf_bytes(found[0])


def gguf_bytes(path: Path) -> int:
    """Bytes of the tensors of a GGUF that a pass reads; the embedding counts where it is the output, too."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    embedding = sizes.pop("token_embd.weight", 0)
    return sum(sizes.values()) + (0 if "output.weight" in sizes else embedding)


def safetensors_bytes(path: Path) -> int:
    """The same of a transformers directory."""
    sizes: dict[str, int] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                part = tensors.get_slice(name)
                width = {"F32": 4, "BF16": 2, "F16": 2}[part.get_dtype()]
                count = 1
                for length in part.get_shape():
                    count *= length
                sizes[name] = width * count
    names = [name for name in sizes if name.endswith(("embed_tokens.weight", "wte.weight"))]
    tied = json.loads((path / "config.json").read_text("utf-8")).get("tie_word_embeddings", False)
    looked_up = 0 if tied or "lm_head.weight" not in sizes else sum(sizes[name] for name in names)
    return sum(sizes.values()) - looked_up
