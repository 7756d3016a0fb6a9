"""A writing aid: rewrites a paragraph as told, and says how much of it did not have to be thought out anew.

    python examples/rewrite.py "Correct the spelling and change nothing else." < letter.txt

Most of a rewritten text stands in the old one, so drafts are copied from there (the suffix source), and the
target accepts many of them at a time: the more is kept, the faster it is.
"""

from __future__ import annotations

import sys

from draftd.ipc import Client, Done, DraftdError


def main(instruction: str) -> None:
    text = sys.stdin.read().strip()
    request = f"{instruction} Answer with the whole new text and nothing else.\n\n{text}"
    with Client(name="rewrite") as client:
        for event in client.generate(
            messages=[{"role": "user", "content": request}], max_tokens=len(text) // 2 + 100
        ):
            if isinstance(event, Done):
                report(event)
            else:
                print(event.text, end="", flush=True)


def report(done: Done) -> None:
    """Who found the words: accepted of drafted tokens, and passes of the target by who drafted for them."""
    stats = done.stats
    sources = ", ".join(f"{source} {rounds}" for source, rounds in stats.sources.items() if rounds)
    passes = f"{done.usage.completion_tokens} tokens in {stats.rounds} passes, drafted by: {sources}"
    print(
        f"\n\n({stats.accepted} of {stats.drafted} drafted tokens accepted; {passes}; "
        f"{stats.tokens_per_second:.1f} tokens a second)",
        file=sys.stderr,
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else "Correct the spelling and grammar of this text.")
    except DraftdError as error:
        sys.exit(error.message)
