"""Live translation of a stream of lines, as for subtitles: each has a budget and is shown once it is spent.

    tail -f chat.log | python examples/translate_lines.py --to French --budget 3000

It shows `deadline_ms`, which counts waiting, reading and writing alike, so that a stream never falls behind:
a line that could not be finished ends with an ellipsis, and the next ones are not late because of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator

from draftd.ipc import AsyncClient, DraftdError
from draftd.ipc.errors import Overloaded


async def main(language: str, budget: int) -> None:
    """Ask for each line as it comes, several at a time; show them in their order."""
    system = f"You translate what people say into {language}. Answer with the translation alone, on one line."
    asked = asyncio.Queue[asyncio.Task[str] | None]()

    async def translate(line: str) -> str:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": line}]
        try:
            answer = await client.complete(messages=turns, deadline_ms=budget, max_tokens=200, stop=["\n"])
        except Overloaded:  # more lines at once than the daemon takes: this one stays as it is
            return line
        return answer.text.strip() + ("…" if answer.finish_reason == "deadline" else "")

    async def ask() -> None:
        async for line in lines():
            asked.put_nowait(asyncio.create_task(translate(line)))
        asked.put_nowait(None)

    async def show() -> None:
        while task := await asked.get():
            print(await task, flush=True)

    async with AsyncClient(name="translate-lines") as client:
        await client.prefill(messages=[{"role": "system", "content": system}])  # what all lines begin with
        await asyncio.gather(ask(), show())


async def lines() -> AsyncIterator[str]:
    """The lines of standard input as they come; a thread reads them, which ends with the program."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # a line came when the loop had ended
            for line in sys.stdin:
                loop.call_soon_threadsafe(queue.put_nowait, line.strip())
            loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    while (line := await queue.get()) is not None:
        if line:
            yield line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Translate standard input, line by line.")
    parser.add_argument("--to", default="French", help="the language")
    parser.add_argument("--budget", type=int, default=3000, help="milliseconds for each line")
    options = parser.parse_args()
    try:
        asyncio.run(main(options.to, options.budget))
    except DraftdError as error:
        sys.exit(error.message)
