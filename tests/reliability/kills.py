"""End the engine in mid-stream, again and again, and hold every answer to its undisturbed run.

    python -m tests.reliability.kills [--count 100] [--pair smollm2]

Without --pair a tiny model in fp32, whose answers must be equal to the token; questions whose undisturbed
answer depends on how it is drafted (a tie within the rounding of fp32) are left out and counted. With --pair
the pair in the user's cache in bf16, where a near tie may flip when a cache is recomputed at another width:
the answers that part are counted, with the lead of the likeliest token at the place where they do.

It fails unless each kill ended an engine that had a stream to go on with: the front's counters tell.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.daemon.conftest import serving
from tests.reliability.daemons import make_files, serving_pair
from tests.reliability.killing import CAUSES, STREAMS, Case, Kill, kill_often
from tests.reliability.record import here, record
from tests.reliability.streams import questions, settled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pair", help="a pair in the cache, in bf16, in place of the tiny fp32 model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="draftd-") as folder:
        if given.pair is None:
            with serving(*make_files(folder)) as serve:
                daemon = serve(target="same.gguf", backend="llama_cpp")
                asked = questions(12, 400)
                sure = settled(daemon, asked)
                return report(len(asked) - len(sure), kill_often(daemon, given.count, sure))
        with serving_pair(Path(folder), given.pair) as daemon:
            asked = questions(12, 120)
            for question in asked:
                question["logprobs"] = 2
            return report_bf16(given.pair, kill_often(daemon, given.count, asked))


def counted(kills: list[Kill]) -> list[tuple[str, str]]:
    """Rows: what the kills were, by the front's own counters."""
    some = sum(kill.left_open > 0 for kill in kills)
    return [
        ("kills that ended one engine each", f"{sum(kill.ends == 1 for kill in kills)} of {len(kills)}"),
        ("kills with at least one stream open", f"{some} of {len(kills)}"),
        ("streams open then", f"{sum(kill.left_open for kill in kills)} of {STREAMS * len(kills)}"),
    ]


def report(left_out: int, killing: Iterator[Kill]) -> int:
    """The table of the fp32 run; a failure is shown as it comes."""
    kills = []
    bad = 0
    equal: Counter[str] = Counter()
    for kill in killing:
        kills.append(kill)
        differ = [case for case in kill.cases if not case.equal]
        equal[kill.cause] += len(kill.cases) - len(differ)
        bad += bool(differ)
        tell(kill, differ)
    by_cause = Counter(kill.cause for kill in kills)
    record(
        "kills",
        [
            here(),
            ("questions left out: their undisturbed runs part", str(left_out)),
            *counted(kills),
            ("kills whose every stream went on and was equal", f"{len(kills) - bad} of {len(kills)}"),
            *(
                (f"streams equal after {cause}", f"{equal[cause]} of {STREAMS * by_cause[cause]}")
                for cause in CAUSES
            ),
        ],
    )
    return 1 if bad or not all(kill.counts for kill in kills) else 0


def report_bf16(pair: str, killing: Iterator[Kill]) -> int:
    """The table of the bf16 run: how many parted, and how far the likeliest token led where they did."""
    kills = []
    total: Counter[bool] = Counter()
    parted: Counter[bool] = Counter()
    margins = []
    broken = 0
    for kill in killing:
        kills.append(kill)
        lost = []
        for case in kill.cases:
            sampled = case.temperature > 0
            total[sampled] += 1
            if case.answer.problem or len(case.answer.tokens) != len(case.undisturbed.tokens):
                lost.append(case)
            elif not case.equal:
                parted[sampled] += 1
                if not sampled:
                    margins.append(case.undisturbed.margins[case.parts_at])
        broken += len(lost)
        tell(kill, lost)
    shown = ", ".join(f"{margin:.3f}" for margin in sorted(margins)) or "none"
    record(
        "kills-bf16",
        [
            here(),
            ("pair", f"{pair}, target in transformers, bf16"),
            *counted(kills),
            ("streams that did not go on to their end", str(broken)),
            ("greedy streams equal to the token", f"{total[False] - parted[False]} of {total[False]}"),
            ("sampled streams equal to the token", f"{total[True] - parted[True]} of {total[True]}"),
            ("where greedy ones part: lead of the likeliest token, in nats", shown),
        ],
    )
    return 1 if broken or not all(kill.counts for kill in kills) else 0


def tell(kill: Kill, cases: list[Case]) -> None:
    """What was wrong with a kill, as it comes."""
    if not kill.counts:
        print(kill.problem, file=sys.stderr, flush=True)
    for case in cases:
        print(f"kill {kill.number}, {kill.cause}: {case.problem}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
