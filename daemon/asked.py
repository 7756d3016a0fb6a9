"""What a `generate` or `prefill` message asks for, in the engine's terms: tokens, processors, who drafts."""

from __future__ import annotations

from typing import Any

from draftd.daemon.admission import check_beams
from draftd.daemon.answers import seed_of
from draftd.daemon.beams import Beams
from draftd.daemon.calls import Calls
from draftd.daemon.control import Mode
from draftd.daemon.loader import Loaded
from draftd.daemon.places import CONFINED
from draftd.daemon.plan import Source
from draftd.daemon.request import Priority, Request
from draftd.ipc.errors import ContextOverflow, InvalidRequest
from draftd.models import tools
from draftd.models.grammar import Grammars, Matcher
from draftd.models.processors import Penalties, Processors
from draftd.models.sampling import Sampling


class Asked:
    """Reads messages for one loaded pair; grammars are compiled once."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.grammars: Grammars | None = None  # made with the first request that has a grammar
        self._form: tools.Form | None = None  # found with the first request that has tools

    def prompt(self, body: dict[str, Any]) -> list[int]:
        """The tokens of a request's prompt; DraftdError if they can't be used."""
        tokenizer, target = self.loaded.tokenizer, self.loaded.target
        if body["messages"] is not None:
            # A model that may call nothing is told of nothing; a prefill does not say what may be called.
            none = body.get("tool_choice") == "none"
            prompt = self._chat(body["messages"], [] if none else body["tools"])
        elif body["prompt"] is not None:
            prompt = tokenizer.encode(body["prompt"])
        else:
            prompt = list(body["tokens"])
        if not prompt:
            raise InvalidRequest("the prompt gives no token to go on from: send some text")
        if max(prompt) >= target.vocab:  # of a text, too: a tokenizer may have more than the model
            raise InvalidRequest(
                f"token {max(prompt)} of the prompt is outside the vocabulary of {target.vocab}: leave it out"
            )
        if len(prompt) >= target.context:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens, the context holds {target.context}, answer included: "
                "shorten the prompt or serve with a larger --context"
            )
        return prompt

    def _chat(self, messages: list[dict[str, Any]], declared: list[dict[str, Any]]) -> list[int]:
        """A conversation's tokens; a template that takes no tools would drop them without a word."""
        if declared or any(message["tool_calls"] for message in messages):
            self.form()
        return self.loaded.tokenizer.chat(tools.for_template(messages), tools.declared(declared))

    def form(self) -> tools.Form:
        """How this model calls tools; InvalidRequest if it does not."""
        if self._form is None:
            self._form = tools.find_form(self.loaded.tokenizer.render)
        return self._form

    def calls(self, body: dict[str, Any]) -> Calls | None:
        """What reads calls out of an answer; None where none can be in it."""
        return Calls(self.form(), bound=body["grammar"] is not None) if _may_call(body) else None

    def _matcher(self, body: dict[str, Any]) -> Matcher | None:
        """Where a request's answer stands in the grammar that holds it; None: it is free."""
        given = body["grammar"]
        if given is None and not _may_call(body):
            return None
        if self.grammars is None:
            self.grammars = Grammars(self.loaded.tokenizer, self.loaded.target.vocab)
        if _may_call(body):
            return self._calling(body, self.grammars)
        return self.grammars.matcher(given["kind"], given["source"])

    def _calling(self, body: dict[str, Any], grammars: Grammars) -> Matcher:
        """A matcher that holds calls to their functions' schemas; InvalidRequest names a wrong one."""
        choice, given = body["tool_choice"], body["grammar"]
        allowed = tools.functions(body["tools"])
        if isinstance(choice, dict):
            allowed = [each for each in allowed if each.name == choice["function"]["name"]]
        source = tools.grammar(
            self.form(),
            allowed,
            forced=choice != "auto",
            parallel=body["parallel_tool_calls"] and not isinstance(choice, dict),
            schema=None if given is None else given["source"],
        )
        try:
            return grammars.matcher("lark", source)
        except InvalidRequest:  # of all of it: which of its parts is wrong?
            if given is not None:
                grammars.matcher(given["kind"], given["source"])
            for each in allowed:
                try:
                    grammars.matcher("json_schema", each.parameters)
                except InvalidRequest as error:
                    raise InvalidRequest(f"tools: the parameters of {each.name}: {error}") from None
            raise

    def processors(self, body: dict[str, Any], prompt: list[int]) -> Processors | None:
        """The row processors a request asks for, None if it asks for none."""
        penalties = Penalties(
            body["repetition_penalty"],
            body["presence_penalty"],
            body["frequency_penalty"],
            tuple((int(token), bias) for token, bias in body["logit_bias"].items()),
        )
        matcher = self._matcher(body)
        if penalties == Penalties() and matcher is None:
            return None
        return Processors(penalties, prompt, matcher)

    def request(self, body: dict[str, Any], index: int, prompt: list[int]) -> Request:
        """What the engine is to do for one of a message's answers, behind what was emitted of it already."""
        target, tokenizer, count = self.loaded.target, self.loaded.tokenizer, len(body["emitted"])
        emitted, limit = body["emitted"][index], min(body["max_tokens"], target.context - len(prompt))
        check_beams(body["beams"], target.slots)  # again: a reload may have left it fewer
        if wrong := [token for token in emitted if token >= target.vocab]:
            raise InvalidRequest(f"token {wrong[0]} of resume is outside the vocabulary of {target.vocab}")
        # What a request may not take from others its answers still share with each other.
        confined = not body["cache_prompt"] and count > 1
        stop_ids = frozenset(body["stop_tokens"]).union(() if body["ignore_eos"] else tokenizer.stop_ids)
        beams = Beams(body["beams"], limit, stop_ids) if body["beams"] > 1 else None
        request = Request(
            key=body["key"],
            tokens=prompt if beams else prompt + emitted,
            prompt=len(prompt),
            end=len(prompt) + limit,
            sampling=Sampling(
                body["temperature"],
                body["top_k"],
                body["top_p"],
                body["min_p"],
                seed=seed_of(body["seed"], index),
            ),
            stop_ids=stop_ids,
            processors=self.processors(body, prompt),
            mode="off" if beams else mode(body["speculate"]),
            beams=beams,
            verify=body["verify"],
            logprobs=body["logprobs"],
            scope="" if confined else body["scope"],
            reuse=confined or body["cache_prompt"],
            priority=Priority[body["priority"].upper()],
            client=body["client"],
            cache_owner=body["cache_owner"] if body["cache_prompt"] else f"{CONFINED}{body['key']}",
        )
        if request.processors is not None and not beams:
            request.processors.accept(emitted)
        return request

    def prefill(self, body: dict[str, Any]) -> Request:
        """A prompt that is to be computed and no more, its template's closing marks included.

        They are right if nothing more is typed; if more is, they are a handful of tokens computed in vain.
        """
        prompt = self.prompt(body)
        return Request(
            key=body["key"],
            tokens=prompt,
            prompt=len(prompt),
            end=len(prompt),
            sampling=Sampling(),
            stop_ids=frozenset(),
            priority=Priority.PREFILL,
            client=body["client"],
            cache_owner=body["cache_owner"],
            cache_only=True,
        )


def _may_call(body: dict[str, Any]) -> bool:
    return bool(body["tools"]) and body["tool_choice"] != "none"


def mode(speculate: bool | str) -> Mode:
    """A request's `speculate` as the controller takes it."""
    if speculate is True or speculate == "auto":
        return "auto"
    if speculate is False or speculate == "off":
        return "off"
    source, _, length = speculate.partition(":")
    sources: dict[str, Source] = {"suffix": "suffix", "model": "model", "chain": "chain"}
    return sources[source], int(length)
