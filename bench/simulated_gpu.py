"""A SIMULATED target: the real target's recorded logits, replayed at a chosen time a pass.

    python bench/simulated_gpu.py --prompts FILE.jsonl --json OUT.json

For pairs that this machine can't hold. The logits and the draft's tokens are real; the times of target and
draft are inputs, printed with the result. The engine, the controller and our own code run as they are, at
their real time: its clock is moved by the difference. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import documents
import numpy as np

from draftd.daemon import drafting as drafting_module
from draftd.daemon import engine as engine_module
from draftd.daemon import loader
from draftd.daemon.bench import read_prompts
from draftd.daemon.control import Mode
from draftd.daemon.controller import Controller
from draftd.daemon.drafting import Drafting
from draftd.daemon.engine import Engine
from draftd.daemon.request import Request
from draftd.daemon.settings import load as load_settings
from draftd.drafts.base import Context, Draft, Proposal
from draftd.drafts.suffix import SuffixDraft
from draftd.models.base import Rows, Span, State, Target
from draftd.models.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Machine:
    """A pair and a place for it: a pass reads all weights once, each row more costs a little."""

    name: str
    target_bytes: float
    bandwidth: float  # bytes a second, as the maker publishes it
    row_ms: float  # of each row after the first
    draft_ms: float  # of a drafted token

    @property
    def pass_ms(self) -> float:
        return 1000 * self.target_bytes / self.bandwidth


MACHINES = (
    Machine("8B bf16 on an RTX 4090, draft 0.5B beside it", 16.1e9, 1008e9, 0.03, 1.5),
    Machine("8B bf16 on an RTX 4090, draft 0.5B on this CPU", 16.1e9, 1008e9, 0.03, 20.0),
    Machine("14B bf16 on an RTX A6000, draft 0.5B beside it", 29.5e9, 768e9, 0.05, 2.0),
    Machine("70B bf16 on two A100 80GB, draft 0.5B beside them", 141e9, 2 * 2039e9, 0.1, 1.5),
    Machine("70B bf16 on two A100 80GB, draft 0.5B on this CPU", 141e9, 2 * 2039e9, 0.1, 20.0),
    Machine("70B 4-bit in dual-channel DDR5, draft 0.5B on the same CPU", 40e9, 80e9, 20.0, 20.0),
)
FED = 16  # tokens of a prompt that the draft reads in the time of one that it drafts


class Clock:
    """perf_counter, moved by the difference of what a simulated part should take and what it took."""

    def __init__(self) -> None:
        self.offset = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.offset

    def instead(self, work: Callable[[], Any], seconds: Callable[[Any], float]) -> Any:
        """Do the work and let it have taken that long."""
        began = time.perf_counter()
        result = work()
        self.offset += seconds(result) - (time.perf_counter() - began)
        return result


class Replay:
    """models/base.py's Target over one recorded answer: the row at a position is the recorded one."""

    def __init__(self, rows: Rows, prompt: int, clock: Clock, place: Machine) -> None:
        self.rows, self.prompt, self.clock, self.place = rows, prompt, clock, place
        self.vocab, self.slots, self.context = rows.shape[1], 1, prompt + len(rows) + 1

    def forward(self, spans: Sequence[Span]) -> list[Rows]:
        return list(
            self.clock.instead(lambda: [self._rows(span) for span in spans], lambda _: self._took(spans))
        )

    def _rows(self, span: Span) -> Rows:
        first = (
            span.start + len(span.tokens) - span.rows + 1 - self.prompt
        )  # of the tokens that are predicted
        # A row behind a wrong draft, or behind the recorded end, is never looked at: any will do.
        wanted = np.clip(np.arange(first, first + span.rows), 0, len(self.rows) - 1)
        return self.rows[wanted].copy()

    def _took(self, spans: Sequence[Span]) -> float:
        more = sum(len(span.tokens) for span in spans) - 1
        return (self.place.pass_ms + self.place.row_ms * more) / 1000

    def truncate(self, slot: int, length: int) -> None: ...

    def copy_prefix(self, source: int, target: int, length: int) -> None: ...

    def save_slot(self, slot: int) -> State | None:
        return None

    def load_slot(self, slot: int, state: State, length: int) -> None:
        raise ValueError("a replayed target keeps no state")

    def drop(self, slots: Sequence[int]) -> None: ...

    def set_threads(self, count: int) -> None: ...

    def close(self) -> None: ...


class TimedDraft:
    """The real draft; its time is what the simulated place would take."""

    def __init__(self, draft: Draft, clock: Clock, place: Machine) -> None:
        self.draft, self.clock, self.place = draft, clock, place
        self.seen = 0

    def propose(self, contexts: Sequence[Context]) -> list[Proposal]:
        (context,) = contexts
        fed = max(0, len(context.tokens) - self.seen - 1)

        def seconds(proposals: list[Proposal]) -> float:
            self.seen = len(context.tokens)
            return self.place.draft_ms * (len(proposals[0].tokens) + fed / FED) / 1000

        return list(self.clock.instead(lambda: self.draft.propose(contexts), seconds))

    def prepare(self, slot: int, tokens: Sequence[int]) -> None:
        raise AssertionError("nothing is prefilled here")

    def unseen(self, slot: int, tokens: Sequence[int]) -> int:
        return self.draft.unseen(slot, tokens)

    def copy(self, source: int, target: int, length: int) -> None:
        raise AssertionError("one slot has nobody to copy from")

    def forget(self, slot: int) -> None:
        self.seen = 0
        self.draft.forget(slot)

    def drop(self, slots: Sequence[int]) -> None:
        self.draft.drop(slots)

    def set_threads(self, count: int) -> None:
        self.draft.set_threads(count)

    def close(self) -> None:
        self.draft.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="qwen2.5-coder")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    own = {"pair": options.pair, "slots": 1, "context": 4096, "backend": "llama_cpp", "history": False}
    with tempfile.TemporaryDirectory() as state:
        settings = load_settings(None).model_copy(update=own | {"state_dir": Path(state)})
        loaded = loader.load(settings, lambda fraction, stage: None)
    draft = loaded.drafting.model
    if draft is None:
        raise SystemExit(f"the pair {options.pair} has no draft here: {loaded.info.get('draft_refused')}")
    prompts = read_prompts(options.prompts, options.per_category)
    recorded = []
    for prompt in prompts:
        tokens = loaded.tokenizer.chat([{"role": "user", "content": prompt.turns[0]}])
        recorded.append((prompt.category, tokens, record(loaded.target, tokens, options.max_tokens)))
        print(f"recorded {prompt.category}", flush=True)
    runs = []
    for place in MACHINES:
        for policy in (None, ("model", 8), ("suffix", 8)):
            runs.append(simulate(place, policy or "auto", recorded, draft))
        best = max(runs[-2:], key=lambda run: run["speedup"])
        print(
            f"SIMULATED {place.name}: {runs[-3]['speedup']:.2f}x, best fixed {best['speedup']:.2f}x",
            flush=True,
        )
    document = documents.begin(
        "simulated",
        pair=options.pair,
        inputs=[asdict(place) | {"pass_ms": place.pass_ms} for place in MACHINES],
        fed_per_drafted=FED,
        runs=runs,
    )
    options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def record(target: Target, prompt: list[int], count: int) -> Rows:
    """The target's own greedy answer, as the rows that predict it: [count, vocab]."""
    target.truncate(0, 0)
    rows, fed, at = [], list(prompt), 0
    for _ in range(count):
        (row,) = target.forward([Span(0, at, fed, 1)])
        rows.append(row[-1].copy())
        at, fed = at + len(fed), [int(row[-1].argmax())]
    return np.stack(rows)


def simulate(
    place: Machine, mode: Mode, recorded: list[tuple[str, list[int], Rows]], draft: Draft
) -> dict[str, Any]:
    """All prompts one after the other with one controller; speeds over the simulated target alone."""
    clock = Clock()
    for module in (engine_module, drafting_module):
        vars(module)["time"] = SimpleNamespace(perf_counter=clock.perf_counter)
    controller = Controller(("suffix", "model"))
    timed = TimedDraft(draft, clock, place)
    seconds, tokens, choices = 0.0, 0, {}
    for key, (category, prompt, rows) in enumerate(recorded):
        drafting = Drafting(timed, SuffixDraft(), controller)
        engine = Engine(Replay(rows, len(prompt), clock, place), drafting)
        request = Request(
            key, list(prompt), len(prompt), len(prompt) + len(rows), Sampling(), frozenset(), mode=mode
        )
        request.reuse = False
        engine.add(request)
        engine.step()  # the prompt's pass
        began = clock.perf_counter()
        while engine.busy:
            engine.step()
        took = clock.perf_counter() - began
        expected = rows.argmax(axis=1).tolist()
        if request.tokens[len(prompt) :] != expected:
            raise SystemExit(f"the replayed answer of {category} differs from the recorded one")
        seconds, tokens = seconds + took, tokens + len(rows) - 1
        choices[category] = (len(rows) - 1) * place.pass_ms / 1000 / took
    return {
        "machine": place.name,
        "policy": mode if isinstance(mode, str) else f"{mode[0]}:{mode[1]}",
        "speedup": tokens * place.pass_ms / 1000 / seconds,
        "by_category": choices,
    }


if __name__ == "__main__":
    main()
