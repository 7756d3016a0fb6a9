"""What a `generate` or `prefill` message asks for, in the engine's terms: tokens, processors, who drafts."""

from __future__ import annotations

from typing import Any

from draftd.daemon.control import Mode
from draftd.daemon.loader import Loaded
from draftd.daemon.plan import Source
from draftd.ipc.errors import ContextOverflow, InvalidRequest
from draftd.models.grammar import Grammars
from draftd.models.processors import Penalties, Processors


class Asked:
    """Reads messages for one loaded pair; grammars are compiled once."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.grammars: Grammars | None = None  # made with the first request that has a grammar

    def prompt(self, body: dict[str, Any]) -> list[int]:
        """The tokens of a request's prompt; DraftdError if they can't be used."""
        tokenizer, target = self.loaded.tokenizer, self.loaded.target
        if body["messages"] is not None:
            prompt = tokenizer.chat(body["messages"])
        elif body["prompt"] is not None:
            prompt = tokenizer.encode(body["prompt"])
        else:
            prompt = list(body["tokens"])
            if wrong := [token for token in prompt if token >= target.vocab]:
                raise InvalidRequest(f"token {wrong[0]} is outside the vocabulary of {target.vocab}")
        if not prompt:
            raise InvalidRequest("the prompt gives no token to go on from: send some text")
        if len(prompt) >= target.context:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens, the context holds {target.context}, answer included: "
                "shorten the prompt or serve with a larger --context"
            )
        return prompt

    def processors(self, body: dict[str, Any], prompt: list[int]) -> Processors | None:
        """The row processors a request asks for, None if it asks for none."""
        penalties = Penalties(
            body["repetition_penalty"],
            body["presence_penalty"],
            body["frequency_penalty"],
            tuple((int(token), bias) for token, bias in body["logit_bias"].items()),
        )
        matcher = None
        if body["grammar"] is not None:
            if self.grammars is None:
                tokenizer = self.loaded.tokenizer
                vocabulary = tokenizer.grammar_vocabulary(self.loaded.target.vocab)
                self.grammars = Grammars(vocabulary, tokenizer.stop_ids)
            matcher = self.grammars.matcher(body["grammar"]["kind"], body["grammar"]["source"])
        if penalties == Penalties() and matcher is None:
            return None
        return Processors(penalties, prompt, matcher)


def mode(speculate: bool | str) -> Mode:
    """A request's `speculate` as the controller takes it."""
    if speculate is True or speculate == "auto":
        return "auto"
    if speculate is False or speculate == "off":
        return "off"
    source, _, length = speculate.partition(":")
    sources: dict[str, Source] = {"suffix": "suffix", "model": "model", "chain": "chain"}
    return sources[source], int(length)
