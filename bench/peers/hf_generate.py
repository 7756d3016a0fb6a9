"""transformers' own generate: plain, assisted (its default and its dynamic schedule), prompt lookup."""

from __future__ import annotations

import importlib.util
from functools import cache, partial
from typing import Any

import torch
from lines import Build, Mode, Request, Stopwatch, serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class Watch(BaseStreamer):  # type: ignore[misc,no-untyped-call]
    """Sees the prompt once, then tokens as they come."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch, self.prompt = watch, True

    def put(self, value: Any) -> None:
        if self.prompt:
            self.prompt = False
        else:
            self.watch.tick(value.numel())

    def end(self) -> None:
        pass


def offer(settings: dict[str, Any]) -> dict[str, Build | str]:
    if importlib.util.find_spec("sklearn") is None:
        raise ModuleNotFoundError("assisted generation at its best wants scikit-learn: pip install it")
    torch.set_num_threads(settings["threads"])
    dtype, device = getattr(torch, settings["dtype"]), settings["device"]
    if device == "auto":  # as draftd's own target takes it
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(settings["target"])

    def load(part: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(settings[part], dtype=dtype).to(device).eval()

    target = cache(partial(load, "target"))  # one for all modes, loaded with the first that is wanted

    def mode(**options: Any) -> Mode:
        model = target()

        def answer(request: Request) -> dict[str, Any]:
            torch.manual_seed(request["seed"])
            watch = Stopwatch()
            inputs = tokenizer(request["text"], return_tensors="pt", add_special_tokens=False)
            inputs = inputs.to(device)
            sampling: dict[str, Any] = {"do_sample": False}
            if request["temperature"]:
                sampling = {
                    "do_sample": True,
                    "temperature": request["temperature"],
                    "top_k": 0,
                    "top_p": 1.0,
                }
            with torch.inference_mode():
                output = model.generate(
                    **inputs,
                    max_new_tokens=request["max_tokens"],
                    streamer=Watch(watch),
                    **sampling,
                    **options,
                )
            made = output[0, inputs["input_ids"].shape[1] :]
            text = tokenizer.decode(made, skip_special_tokens=True)
            return watch.result(
                text,
                len(made),
                lambda count: tokenizer.decode(made[:count], skip_special_tokens=True),
                rounds=len(watch.arrivals),  # the streamer is told once a round
            )

        return answer

    def assisted(schedule: str) -> Mode:
        assistant = load("draft")
        assistant.generation_config.num_assistant_tokens_schedule = schedule
        return mode(assistant_model=assistant)

    return {
        "plain": mode,
        # Both stop at a draft that is less sure than 0.4, a bound that it moves by what came of earlier
        # ones if scikit-learn is there; "heuristic" also drafts longer after a full acceptance.
        "assisted": partial(assisted, "constant"),
        "assisted heuristic": partial(assisted, "heuristic"),
        "prompt lookup": partial(mode, prompt_lookup_num_tokens=10),
    }


if __name__ == "__main__":
    serve(offer, "transformers", "torch")
