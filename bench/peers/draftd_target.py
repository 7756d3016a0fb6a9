"""draftd's own target without the daemon: a pass for each token, and draftd's choice from its row."""

from __future__ import annotations

from functools import partial
from typing import Any

from lines import Build, Mode, Request, Stopwatch, serve

from draftd.daemon.loader import load
from draftd.daemon.settings import load as load_settings
from draftd.models.base import Span
from draftd.models.sampling import Sampling, choose

PIECE = 512  # tokens of a prompt at once, as the engine feeds it


def offer(settings: dict[str, Any]) -> dict[str, Build | str]:
    return {"in process": partial(mode, settings)}


def mode(settings: dict[str, Any]) -> Mode:
    own = {name: settings[name] for name in ("pair", "backend", "threads", "context")}
    alone = {"speculate": False, "history": False}
    loaded = load(load_settings(None).model_copy(update=own | alone), lambda fraction, stage: None)
    target, tokenizer = loaded.target, loaded.tokenizer

    def answer(request: Request) -> dict[str, Any]:
        watch = Stopwatch()
        sampling = Sampling(request["temperature"], seed=request["seed"])
        tokens = tokenizer.chat(request["messages"])
        prompt, fed, stream, pieces = len(tokens), 0, tokenizer.stream(), [""]
        target.truncate(0, 0)  # the prompt is computed anew
        while len(tokens) < min(prompt + request["max_tokens"], target.context):
            piece = tokens[fed : fed + PIECE]
            last = fed + len(piece) == len(tokens)
            (rows,) = target.forward([Span(0, fed, piece, int(last))])
            fed += len(piece)
            if last:
                tokens.append(choose(rows[0], sampling, len(tokens)))
                watch.tick()
                if tokens[-1] in tokenizer.stop_ids:
                    break
                pieces.append(stream.push(tokens[-1]))
        made = len(tokens) - prompt
        pieces.append(stream.flush())
        return watch.result("".join(pieces), made, lambda count: "".join(pieces[: count + 1]), rounds=made)

    return answer


if __name__ == "__main__":
    serve(offer, "draftd")
