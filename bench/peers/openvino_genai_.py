"""OpenVINO GenAI on the CPU: plain, prompt lookup and draft model from int4 exports, plain from the GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino_genai as genai
from lines import Mode, Request, Stopwatch, serve


def load(settings: dict[str, Any]) -> dict[str, Mode | str]:
    limits = {"INFERENCE_NUM_THREADS": settings["threads"]}

    def mode(path: str, lookup: bool = False, assistant: str | None = None) -> Mode:
        options: dict[str, Any] = dict(limits)
        if lookup:
            options["prompt_lookup"] = True
        if assistant is not None:
            options["draft_model"] = genai.draft_model(assistant, "CPU", **limits)
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
                config.num_assistant_tokens, config.max_ngram_size = 5, 3
            if assistant is not None:
                config.assistant_confidence_threshold = 0.4
            watch = Stopwatch()

            def stream(piece: str) -> Any:
                watch.tick()
                return genai.StreamingStatus.RUNNING

            result = pipeline.generate([request["text"]], config, stream)
            text = result.texts[0]
            return watch.result(text, int(tokenizer.encode(text).input_ids.shape[1]))

        return answer

    modes: dict[str, Mode | str] = {}
    target, draft = (settings.get(f"{part}_int4") for part in ("target", "draft"))
    if target and Path(target).exists():
        modes |= {"int4 plain": mode(target), "int4 prompt lookup": mode(target, lookup=True)}
    else:
        modes |= dict.fromkeys(
            ("int4 plain", "int4 prompt lookup"), "no export of the target: --int4 names it"
        )
    if target and draft and Path(draft).exists():
        modes["int4 draft model"] = mode(target, assistant=draft)
    else:
        modes["int4 draft model"] = "no export of both: --int4 names their folder"
    modes["GGUF plain"] = mode(settings["target_gguf"])
    modes["GGUF drafting"] = "measured from its own int4 exports"
    return modes


if __name__ == "__main__":
    serve(load)
