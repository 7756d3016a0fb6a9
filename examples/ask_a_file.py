"""Questions about a text file, which is read once: each question costs only its own words.

    python examples/ask_a_file.py notes.txt      # then a question a line

While the user thinks of the first question the daemon already reads the file (`prefill`). Under a name
(`conversation`) it keeps what it computed on disk, so that the next run of this program need not wait either.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from draftd.ipc import Client, Done, DraftdError

TASK = "Answer the question about this text in one or two sentences, from the text alone."


def main(file: Path) -> None:
    text = file.read_text("utf-8").strip()

    def about(question: str) -> dict[str, Any]:
        turn = {"role": "user", "content": f"{TASK}\n\n{text}\n\nQuestion: {question}"}
        return {"messages": [turn], "conversation": str(file.resolve())[-128:]}

    with Client(name="ask-a-file") as client:
        read = client.prefill(**about(""))
        assert read is not None  # as it waited
        print(f"{read.computed_tokens} tokens read, {read.cached_tokens} were known", file=sys.stderr)
        for line in sys.stdin:
            for event in client.generate(**about(line.strip()), max_tokens=120):
                if isinstance(event, Done):
                    used, first = event.usage, event.stats.time_to_first_token
                    known = f"{used.cached_tokens} of {used.prompt_tokens} prompt tokens were known"
                    print(f"\n    ({known}; first word after {first:.2f} s)", file=sys.stderr, flush=True)
                else:
                    print(event.text, end="", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python ask_a_file.py FILE: the text to ask about")
    try:
        main(Path(sys.argv[1]))
    except (DraftdError, OSError) as error:
        sys.exit(str(error))
