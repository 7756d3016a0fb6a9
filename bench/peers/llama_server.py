"""llama.cpp's own server, prebuilt in xllamacpp: plain, with a draft model, with an n-gram draft."""

from __future__ import annotations

import json
from typing import Any

import xllamacpp
from lines import Mode, Request, Stopwatch, serve


def load(settings: dict[str, Any]) -> dict[str, Mode | str]:
    kinds = xllamacpp.common_speculative_type

    def mode(kind: Any = None) -> Mode:
        params = xllamacpp.CommonParams()
        params.model.path = settings["target_gguf"]
        params.n_ctx = settings["context"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
        if kind is not None:
            params.speculative.types = [kind]
        if kind == kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE:
            params.speculative.draft.mparams.path = settings["draft_gguf"]
            params.speculative.draft.n_max, params.speculative.draft.p_min = 8, 0.5
            params.speculative.draft.cpuparams.n_threads = settings["threads"]
        server = xllamacpp.Server(params)

        def answer(request: Request) -> dict[str, Any]:
            watch = Stopwatch()
            body = {
                "messages": request["messages"],
                "max_tokens": request["max_tokens"],
                "temperature": request["temperature"],
                "seed": request["seed"],
                "cache_prompt": False,
            }
            if request["temperature"]:
                body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
            reply = server.handle_chat_completions(body)
            reply = json.loads(reply) if isinstance(reply, (str, bytes)) else reply
            if "choices" not in reply:
                raise RuntimeError(str(reply)[:300])
            timings = reply["timings"]
            result = watch.result(
                reply["choices"][0]["message"]["content"],
                timings["predicted_n"],
                drafted=timings.get("draft_n", 0),
                accepted=timings.get("draft_n_accepted", 0),
            )
            # The whole reply comes at once: the server's own clock says when its first token was there.
            result["first_seconds"] = max(0.0, result["seconds"] - timings["predicted_ms"] / 1000)
            return result

        return answer

    return {
        "plain": mode(),
        "draft model": mode(kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE),
        "n-gram": mode(kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE),
        "n-gram map, cache and mod": "of the server's n-gram kinds the simple one stands for all",
    }


if __name__ == "__main__":
    serve(load)
