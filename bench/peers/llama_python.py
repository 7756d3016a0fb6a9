"""llama-cpp-python's high-level Llama: plain, and with its prompt lookup."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lines import Build, Mode, Request, Stopwatch, serve
from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding


def offer(settings: dict[str, Any]) -> dict[str, Build | str]:
    # Its own documentation: 2 tokens do best on a CPU. It keeps the logits of the whole context, for which it
    # has room only if told of it.
    lookup = LlamaPromptLookupDecoding(num_pred_tokens=2)
    return {
        "plain": partial(mode, settings),
        "prompt lookup": partial(mode, settings, draft_model=lookup, logits_all=True),
        "draft model": "llama-cpp-python brings no draft model of its own",
    }


def mode(settings: dict[str, Any], **options: Any) -> Mode:
    model = Llama(
        settings["target_gguf"],
        n_ctx=settings["context"],
        n_threads=settings["threads"],
        n_threads_batch=settings["threads"],
        verbose=False,
        **options,
    )
    passes = 0
    evaluate = model.eval

    def counted(tokens: Sequence[int]) -> None:
        nonlocal passes
        passes += 1
        evaluate(tokens)

    model.eval = counted

    def answer(request: Request) -> dict[str, Any]:
        nonlocal passes
        watch, passes = Stopwatch(), 0
        pieces: list[str] = []
        model.reset()  # the prompt is computed anew
        sampling = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} if request["temperature"] else {}
        stream = model.create_completion(
            model.tokenize(request["text"].encode(), add_bos=False, special=True),
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            seed=request["seed"],
            repeat_penalty=1.0,
            stream=True,
            **sampling,
        )
        finish = None
        for piece in stream:
            (choice,) = piece["choices"]
            finish = choice["finish_reason"] or finish
            if choice["text"]:
                watch.tick()
                pieces.append(choice["text"])
        text = "".join(pieces)
        tokens = len(model.tokenize(text.encode(), add_bos=False, special=True))
        tokens += finish == "stop"  # the token that ended it was computed too, and the others count theirs
        return watch.result(text, tokens, lambda count: "".join(pieces[:count]), rounds=passes)

    return answer


if __name__ == "__main__":
    serve(offer, "llama-cpp-python")
