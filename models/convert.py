"""A GGUF file made into a transformers directory once, since transformers reads GGUF for up to minutes."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from draftd.ipc.errors import (
    CorruptModel,
    DraftdError,
    EngineFailed,
    InvalidConfig,
    ModelNotFound,
    UnsupportedModel,
    from_code,
)
from draftd.models.child import end_with
from draftd.models.digest import damaged, digest, write_manifest
from draftd.models.download import writing
from draftd.models.fetch import Progress, Report, exclusive, quiet

# Special tokens that end an answer wherever a vocabulary has them: a GGUF names one end of sequence, while
# chat models also stop at an end of turn or at their base model's end of text.
_ENDINGS = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
}

_STEPS = 3
_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}$")  # how llama.cpp calls the parts of a model that it split


def converted_path(gguf: Path, cache_dir: Path, dtype: str = "bfloat16") -> Path:
    """Where the transformers directory made from this file is, or will be."""
    return cache_dir / "converted" / f"{gguf.stem}-{digest(gguf, cache_dir)[:12]}-{dtype}"


def conversions(gguf: Path, cache_dir: Path) -> list[Path]:
    """The transformers directories that were made from this file, one a dtype."""
    stem = converted_path(gguf, cache_dir, "").name
    return sorted((cache_dir / "converted").glob(glob.escape(stem) + "*"))


def ensure_transformers(gguf: Path, cache_dir: Path, dtype: str = "bfloat16", report: Report = quiet) -> Path:
    """A transformers directory of the GGUF's weights, tokenizer and chat template; made if it is not here.

    Its generation_config.json lists every token id that ends an answer. `report` gets steps, not bytes.
    Raises ModelNotFound, CorruptModel, UnsupportedModel, DiskFull.
    """
    if not is_gguf(gguf):
        raise CorruptModel(f"{gguf} is not a GGUF file: it does not begin with 'GGUF'")
    if is_part(gguf):  # of which transformers would make up the weights of the others
        mend = "set backend to llama_cpp, which reads them all, or merge them"
        raise UnsupportedModel(f"transformers can't convert {gguf}: it is one of several parts; {mend}")
    path = converted_path(gguf, cache_dir, dtype)
    if path.is_dir() and not damaged(path):
        return path
    with exclusive(path, path.name, report):
        if path.is_dir() and not damaged(path):
            return path
        # A conversion whose parent was killed may still write: each has its own name, removed here later.
        staging = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            with writing(path, None):
                for old in (path, *path.parent.glob(f".{glob.escape(path.name)}.*.new")):
                    if old.exists():
                        shutil.rmtree(old)
            _convert_in_child(gguf, staging, dtype, report)
            with writing(path, None):
                write_manifest(staging)
                staging.replace(path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        report(Progress(gguf.stem, "converting", _STEPS, _STEPS, note="done"))
    return path


def is_gguf(path: Path) -> bool:
    """Whether the file begins as every GGUF does; ModelNotFound when there is none."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelNotFound(f"cannot read {path}: {error.strerror}") from None


def is_part(gguf: Path) -> bool:
    """Whether the file is one of several that llama.cpp reads as one model, by its name."""
    return _PART.search(gguf.stem) is not None


def parts(gguf: Path) -> list[Path]:
    """The files that llama.cpp reads with the first of several, that one in front; any other file alone."""
    if (found := _PART.search(gguf.stem)) is None:
        return [gguf]
    name, count = glob.escape(gguf.stem[: found.start()]), found[0][-5:]
    return sorted(gguf.parent.glob(f"{name}-?????-of-{count}{gguf.suffix}"))


def _convert_in_child(gguf: Path, directory: Path, dtype: str, report: Report) -> None:
    """Convert in a process of its own: it takes gigabytes, and may be killed for it."""
    missing = [name for name in ("torch", "transformers", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidConfig(
            f"{', '.join(missing)} is not installed: `pip install 'draftd[engine]'` brings it"
        )
    command = [sys.executable, "-P", "-m", "draftd.models.convert"]
    command += [str(gguf), str(directory), dtype, str(os.getpid())]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # all is here; main memory
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                said = json.loads(line)
                if "code" in said:
                    raise from_code(said["code"], said["message"])
                report(Progress(gguf.stem, "converting", said["step"], _STEPS, note=said["note"]))
            status = child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        if status != 0:
            errors.seek(0)
            said = errors.read().strip().splitlines() or [f"exit status {status}"]
            # One that was killed has said how far it was, not why it ended.
            why = f"signal {-status}, often a lack of memory" if status < 0 else said[-1]
            raise EngineFailed(f"converting {gguf} failed: {why}")


def _convert(gguf: Path, directory: Path, dtype: str) -> None:
    """The child's work; steps go to standard output as one JSON object a line."""
    import torch
    import transformers

    try:
        _say(step=0, note="reading the tokenizer")
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _say(step=1, note="unpacking the weights")
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=getattr(torch, dtype),
            # Without this the weights may stay packed, and packed weights can't be saved.
            quantization_config=transformers.GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        model, info = loaded
        named = {name for name, _ in model.named_parameters()}
        if missing := sorted(named & set(info["missing_keys"])):  # made up by the library
            raise ValueError(f"it finds none of {len(missing)} weights, {missing[0]} among them")
    except Exception as error:  # whatever the library met in a file that it does not understand
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        mend = "set backend to llama_cpp, which reads GGUF as it is"
        raise UnsupportedModel(f"transformers can't convert {gguf}: {reason}; {mend}") from error
    _tie(model)
    model.generation_config = _generation_config(transformers, tokenizer, model.config)
    _say(step=2, note="writing safetensors")
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    with writing(directory, size):
        directory.mkdir()
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _tie(model: Any) -> None:
    """Make the output head the embedding again where the loader copied it for want of a tensor of its own."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight.equal(embedding.weight):
        model.config.tie_word_embeddings = True
        model.tie_weights()


def _generation_config(transformers: Any, tokenizer: Any, config: Any) -> Any:
    special = {
        token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    named = {config.eos_token_id, tokenizer.eos_token_id} - {None}
    ends = sorted(named | {number for text, number in special.items() if text in _ENDINGS})
    return transformers.GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=ends or None, pad_token_id=config.pad_token_id
    )


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _main() -> None:
    gguf, directory, dtype, parent = sys.argv[1:]
    end_with(int(parent))  # what nobody waits for must not hold gigabytes
    try:
        _convert(Path(gguf), Path(directory), dtype)
    except DraftdError as error:
        _say(code=error.code, message=error.message)


if __name__ == "__main__":
    _main()
