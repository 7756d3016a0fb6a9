"""OpenVINO GenAI on the CPU: plain, prompt lookup and draft model, from int4 exports and from the GGUFs."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import openvino_genai as genai
from lines import Build, Mode, Request, Stopwatch, serve

FIVE = 5  # tokens drafted a round where a form does not go by confidence


class Watch(genai.StreamerBase):  # type: ignore[misc]
    """Sees tokens as they come; a callable would be given text, which the library holds back for a while."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__()
        self.watch = watch
        self.tokens: list[int] = []

    def write(self, token: int | list[int]) -> Any:
        new = token if isinstance(token, list) else [token]
        self.tokens += new
        self.watch.tick(len(new))
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def offer(settings: dict[str, Any]) -> dict[str, Build | str]:
    build = partial(mode, {"INFERENCE_NUM_THREADS": settings["threads"]})
    modes: dict[str, Build | str] = {}
    target, draft = (settings.get(f"{part}_int4") for part in ("target", "draft"))
    if target and Path(target).exists():
        modes |= {
            "int4 plain": partial(build, target),
            "int4 prompt lookup": partial(build, target, lookup=True),
        }
    else:
        modes |= dict.fromkeys(
            ("int4 plain", "int4 prompt lookup"), "no export of the target, which --int4 names"
        )
    if target and draft and Path(target).exists() and Path(draft).exists():
        modes |= drafting("int4", partial(build, target, assistant=draft))
    else:
        modes |= dict.fromkeys(drafting("int4", build), "no export of both, whose folder --int4 names")
    gguf = partial(build, settings["target_gguf"])
    modes["GGUF plain"], modes["GGUF prompt lookup"] = gguf, partial(gguf, lookup=True)
    modes |= drafting("GGUF", partial(gguf, assistant=settings["draft_gguf"]))
    if "tuned_gguf" in settings:
        modes |= drafting("GGUF tuned", partial(gguf, assistant=settings["tuned_gguf"]))
    return modes


def drafting(kind: str, build: partial[Mode]) -> dict[str, Build]:
    """A draft model's two ways to draft: while it is sure of itself, or so many tokens a round."""
    return {f"{kind} draft model": build, f"{kind} draft model by {FIVE}": partial(build, tokens=FIVE)}


def mode(
    limits: dict[str, Any],
    path: str,
    lookup: bool = False,
    assistant: str | None = None,
    tokens: int | None = None,
) -> Mode:
    # As it schedules by itself, but for kept prompts: of two equal ones the second would have it easier.
    schedule = genai.SchedulerConfig()
    schedule.enable_prefix_caching = False
    schedule.cache_size, schedule.max_num_batched_tokens = 1, sys.maxsize
    options: dict[str, Any] = limits | {"scheduler_config": schedule}
    if lookup:
        options["prompt_lookup"] = True
    with tempfile.TemporaryDirectory() as folder:
        if assistant is not None:
            read = saved(Path(assistant), Path(folder), limits) if assistant.endswith(".gguf") else assistant
            options["draft_model"] = genai.draft_model(read, "CPU", **limits)
        pipeline = genai.LLMPipeline(path, "CPU", **options)
        tokenizer = pipeline.get_tokenizer()

    def answer(request: Request) -> dict[str, Any]:
        config = genai.GenerationConfig()
        config.max_new_tokens = request["max_tokens"]
        config.apply_chat_template = False
        if request["temperature"]:
            config.do_sample, config.temperature, config.rng_seed = (
                True,
                request["temperature"],
                request["seed"],
            )
        if lookup:
            config.num_assistant_tokens, config.max_ngram_size = FIVE, 3
        if tokens is not None:
            config.num_assistant_tokens = tokens
        elif assistant is not None:
            if request["temperature"]:
                raise NotImplementedError('by confidence its sampling fails: "Check content_length"')
            config.assistant_confidence_threshold = 0.4
        watch = Stopwatch()
        seen = Watch(watch)
        result = pipeline.generate([request["text"]], config, seen)
        metrics = result.perf_metrics
        passes = len(metrics.raw_metrics.m_batch_sizes)  # of the target, also where it has a draft model
        return watch.result(
            result.texts[0],
            metrics.get_num_generated_tokens(),
            lambda count: str(tokenizer.decode(seen.tokens[:count])),
            rounds=passes,
        )

    return answer


def saved(gguf: Path, folder: Path, limits: dict[str, Any]) -> str:
    """A GGUF as the library's own reader writes it anew, beside a link to it: `draft_model` takes no GGUF."""
    link = folder / gguf.name
    link.symlink_to(gguf)
    genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True, **limits)
    return str(folder)


if __name__ == "__main__":
    serve(offer, "openvino-genai")
