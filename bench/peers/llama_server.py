"""llama.cpp's own server, prebuilt in xllamacpp: plain, with a draft model, with each of its n-gram kinds."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import xllamacpp
from lines import Build, Mode, Request, Stopwatch, serve

KINDS = xllamacpp.common_speculative_type
PREFIX = "COMMON_SPECULATIVE_TYPE_"
LIMITS = 8, 0.5  # tokens drafted a round at most, and how sure each must be; the server's own are 3 and 0
SHORT = 3, 8  # the n-gram that is looked for and the tokens that follow; the server's own are 12 and 48

UNTRAINED = "it drafts with a head that was trained for one target, and this pair has none"


def offer(settings: dict[str, Any]) -> dict[str, Build | str]:
    """Each kind that this build of the server names, in its own settings but for LIMITS and SHORT."""
    modes: dict[str, Build | str] = {"plain": partial(mode, settings)}
    for kind in KINDS:
        name = kind.name.removeprefix(PREFIX)
        if name == "DRAFT_SIMPLE":
            modes["draft model"] = partial(mode, settings, kind, settings["draft_gguf"])
            modes["draft model default"] = partial(mode, settings, kind, settings["draft_gguf"], None)
            if "tuned_gguf" in settings:
                modes["draft model tuned"] = partial(mode, settings, kind, settings["tuned_gguf"])
        elif name.startswith("NGRAM_"):
            modes[f"n-gram {spoken(name, 'NGRAM_')}"] = partial(mode, settings, kind)
            if name == "NGRAM_SIMPLE":
                modes["n-gram simple short"] = partial(mode, settings, kind, short=True)
        elif name.startswith("DRAFT_"):  # with an ordinary draft these end the process, or do nothing
            modes[f"draft {spoken(name, 'DRAFT_')}"] = UNTRAINED
    for name in ("SIMPLE", "MAP_K", "MAP_K4V", "MOD", "CACHE"):
        modes.setdefault(f"n-gram {spoken(name, '')}", "this build of the server does not name it")
    return modes


def spoken(name: str, begin: str) -> str:
    return name.removeprefix(begin).lower().replace("_", " ")


def mode(
    settings: dict[str, Any],
    kind: Any = None,
    draft: str = "",
    limits: tuple[int, float] | None = LIMITS,
    short: bool = False,
) -> Mode:
    params = xllamacpp.CommonParams()
    params.model.path = settings["target_gguf"]
    params.n_ctx = settings["context"]
    params.n_parallel = 1
    if hasattr(params, "cache_ram_mib"):  # not every build keeps prompts in memory
        params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if kind is not None:
        params.speculative.types = [kind]
    if draft:
        params.speculative.draft.mparams.path = draft
        if limits is not None:
            params.speculative.draft.n_max, params.speculative.draft.p_min = limits
        params.speculative.draft.cpuparams.n_threads = settings["threads"]
    if short:
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = SHORT
    server = xllamacpp.Server(params)

    def answer(request: Request) -> dict[str, Any]:
        watch = Stopwatch()
        pieces: list[str] = []
        timings: dict[str, Any] = {}  # come with the last chunk
        other: list[Any] = []  # an error, which must not be raised through the library

        def seen(chunk: Any) -> None:
            told = json.loads(chunk) if isinstance(chunk, (str, bytes)) else chunk
            if "choices" not in told:
                other.append(told)
                return
            timings.update(told.get("timings") or {})
            for choice in told["choices"]:
                if piece := choice["delta"].get("content"):
                    watch.tick()
                    pieces.append(piece)

        body = {
            "messages": request["messages"],
            "max_tokens": request["max_tokens"],
            "temperature": request["temperature"],
            "seed": request["seed"],
            "cache_prompt": False,
            "stream": True,
        }
        if request["temperature"]:
            body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        server.handle_chat_completions(body, seen)
        if not timings:
            raise RuntimeError(f"the stream ended without its times: {other}"[:300])
        return watch.result(
            "".join(pieces),
            timings["predicted_n"],
            lambda count: "".join(pieces[:count]),
            drafted=timings.get("draft_n", 0),
            accepted=timings.get("draft_n_accepted", 0),
        )

    return answer


if __name__ == "__main__":
    serve(offer, "xllamacpp")
