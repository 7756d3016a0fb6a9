"""The language part of a voice assistant: partial transcripts in, sentences to speak out.

    speech-recogniser | python examples/voice_assistant.py | speech-synthesiser

Each line of input is what was understood so far of an utterance; an empty line ends it. While it is being
spoken the daemon computes it already (`prefill`), so that the answer begins as soon as the speaker ends. Each
sentence is given out when it is whole. Whoever speaks again interrupts: the answer is cancelled, and what had
been said of it stays in the conversation.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
from collections.abc import AsyncIterator

from draftd.ipc import AsyncClient, Done, DraftdError

STYLE = "You are a voice assistant. Answer in one to three short sentences of plain spoken words."
Turns = list[dict[str, str]]


async def main() -> None:
    turns: Turns = [{"role": "system", "content": STYLE}]
    answer: asyncio.Task[None] | None = None
    heard = ""
    async with AsyncClient(name="voice-assistant") as client:
        async for line in lines():
            if line:
                if answer is not None:
                    answer.cancel()  # which does nothing to one that has ended
                    await end_of(answer)
                heard = line
                await client.prefill(messages=[*turns, {"role": "user", "content": heard}], wait=False)
            elif heard:
                turns.append({"role": "user", "content": heard})
                answer = asyncio.create_task(speak(client, turns))
                await asyncio.sleep(0)  # so that it has begun, and will add its turn even if it is cancelled
                heard = ""
        if answer is not None:
            await end_of(answer)


async def end_of(answer: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await answer


async def speak(client: AsyncClient, turns: Turns) -> None:
    """Answer the last turn sentence by sentence, and add what was spoken as the next turn."""
    spoken: list[str] = []
    rest = ""
    try:
        async with contextlib.aclosing(client.generate(messages=turns, max_tokens=120)) as events:
            async for event in events:
                if isinstance(event, Done):
                    sentences = [rest] if rest else []
                else:
                    *sentences, rest = re.split(r"(?<=[.!?])\s+", rest + event.text)
                for sentence in sentences:
                    print(sentence, flush=True)
                    spoken.append(sentence)
                if isinstance(event, Done):
                    used, first = event.usage, event.stats.time_to_first_token
                    known = f"{used.cached_tokens} of {used.prompt_tokens} prompt tokens were known"
                    print(f"    (first word after {first:.2f} s; {known})", file=sys.stderr, flush=True)
    finally:
        turns.append({"role": "assistant", "content": " ".join(spoken)})


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
        yield line


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except DraftdError as error:
        sys.exit(error.message)
