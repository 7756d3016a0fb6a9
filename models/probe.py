"""Whether llama.cpp survives a batch on this CPU, found out in a child process.

GCC before 13 compiles llama.cpp's AMX code wrongly: the first batch dies of an illegal instruction. That code
runs only on weights repacked into an "extra" buffer type, so a model loaded without is safe, and slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from draftd.models.digest import replace_text

log = logging.getLogger("draftd.engine")

_TOKENS = 64  # fed at once: llama.cpp takes one token a pass through other code
_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Probe:
    """How the child ended, and its last words if it failed."""

    outcome: Literal["ok", "sigill", "failed"]
    detail: str = ""


def extra_bufts_work(state_dir: Path) -> bool:
    """Whether models may be loaded with extra buffer types; probed once for each llama.cpp and CPU."""
    kept = state_dir / "llama-probe.json"
    key = _key()
    try:
        probe = Probe(**json.loads(kept.read_text("utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):
        probe = run_probe()
        if probe.outcome != "failed":  # a failure of another kind may pass: try again next time
            _keep(kept, key, probe)
    if probe.outcome == "sigill":
        log.warning(
            "this llama.cpp dies of an illegal instruction in its AMX code, so models are loaded without it "
            "(slower prompts): build llama-cpp-python with clang-16 or GCC 13"
        )
    elif probe.outcome == "failed":
        log.warning("llama.cpp's probe failed, so models are loaded without repacking: %s", probe.detail)
    return probe.outcome == "ok"


def run_probe(gguf: Path | None = None, *, extra_bufts: bool = True) -> Probe:
    """Feed a batch to a model, a tiny random one unless given, in a child process."""
    arguments = [str(int(extra_bufts)), *([str(gguf)] if gguf else [])]
    command = [sys.executable, "-P", "-m", "draftd.models.probe", *arguments]
    try:
        child = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Probe("failed", f"no answer within {_SECONDS:.0f} seconds")
    if child.returncode == -signal.SIGILL:
        return Probe("sigill")
    if child.returncode != 0:
        words = child.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        return Probe("failed", f"exit status {child.returncode}: {words[-1]}")
    return Probe("ok")


def write_random_gguf(path: Path) -> None:
    """Write a one-layer model whose matrices have the types and sizes that AMX takes (300 kB)."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    width, hidden, vocab = 256, 256, 320
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("no_vocab")
    shapes = {
        "token_embd": (vocab, width),
        "output": (vocab, width),
        **{f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (hidden, width),
        "blk.0.ffn_up": (hidden, width),
        "blk.0.ffn_down": (width, hidden),
    }
    for index, (name, shape) in enumerate(shapes.items()):
        kind = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0)[index % 2]
        weights = random.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(f"{name}.weight", quants.quantize(weights, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _key() -> str:
    """What the outcome depends on: the version, the very library file, the CPU's name and features."""
    parts = [version("llama-cpp-python")]
    spec = find_spec("llama_cpp")  # found, not imported
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for library in sorted(Path(folder).glob("lib/*ggml-cpu*")):
            state = library.stat()
            parts.append(f"{library} {state.st_size} {state.st_mtime_ns}")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    parts += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _keep(path: Path, key: str, probe: Probe) -> None:
    with contextlib.suppress(OSError):  # a disk that takes nothing costs a probe at each start
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({key: asdict(probe)}))


def _child(extra_bufts: bool, gguf: Path | None) -> None:
    import resource

    from draftd.models.base import Span
    from draftd.models.llama_cpp import LlamaTarget

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        if gguf is None:
            gguf = Path(folder) / "probe.gguf"
            write_random_gguf(gguf)
        target = LlamaTarget.load(gguf, slots=1, context=128, threads=1, extra_bufts=extra_bufts)
        tokens = [index % target.vocab for index in range(_TOKENS)]
        target.forward([Span(0, 0, tokens, _TOKENS)])
        target.close()


if __name__ == "__main__":
    _child(sys.argv[1] == "1", Path(sys.argv[2]) if len(sys.argv) > 2 else None)
