"""What `heard` does to the first word's delay: `python first_word.py` beside a running daemon.

A question is said word by word, as fast as people speak, in the third turn of a conversation; then it is
asked. Printed are the milliseconds from its last word to the first word, and to the first sentence, that a
voice could say.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence

from ovos_plugin_manager.templates.agents import AgentMessage, MessageRole

from ovos_draftd import DraftdChatEngine
from ovos_draftd.sentences import sentences

SYSTEM = """You are the voice assistant of a household. Answer in one or two short sentences that sound
well when they are read aloud, without lists, headings, emphasis or links. If you do not know a thing, say so.
The household has a kitchen, a living room, two bedrooms, a study and a garden; lamps in every room, blinds in
the bedrooms, and a heating that can be set by room. Times are in the form of twelve hours, temperatures in
degrees Celsius."""
TALK = (
    "How warm is it in the study at the moment?",
    "It is nineteen and a half degrees in the study, and the heating there is set to twenty.",
    "And what should I wear for a walk in the evening?",
    "It will be about ten degrees and a little windy, so a light jacket and a scarf will do.",
)
QUESTION = "Could you tell me in a few words why the sky turns red when the sun goes down in the evening"
ROLES = (MessageRole.USER, MessageRole.ASSISTANT)
WAYS = ("a new conversation", "its earlier turns computed", "heard while it was said")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--words-a-minute", type=float, default=150.0)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for repetition in range(options.repetitions):
        for way in WAYS:
            # Each begins with words of its own, so that nothing of it is computed already.
            engine = DraftdChatEngine(
                {"system_prompt": f"Household {way} {repetition}. {SYSTEM}", "max_tokens": 60}
            )
            if way != WAYS[0]:
                engine.heard(talk("Could"), wait=True)
            said = QUESTION.split()
            for count in range(1, len(said) + 1):
                time.sleep(60 / options.words_a_minute)
                if way == WAYS[2]:
                    engine.heard(talk(" ".join(said[:count])))
            found[way].append(delays(engine, talk(QUESTION + "?")))
            engine.shutdown()
    print(f"milliseconds, the median of {options.repetitions}: first word, first sentence")
    for way, times in found.items():
        word, sentence = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{way}: {word:.0f}, {sentence:.0f}")


def talk(question: str) -> list[AgentMessage]:
    """The conversation up to a question, or as far as that is heard."""
    said = [*TALK, question]
    return [AgentMessage(ROLES[index % 2], text) for index, text in enumerate(said)]


def delays(engine: DraftdChatEngine, messages: Sequence[AgentMessage]) -> tuple[float, float]:
    """Milliseconds to the first whole word and to the first sentence."""
    began = time.perf_counter()
    word, text = 0.0, ""

    def watched() -> Iterator[str]:
        nonlocal word, text
        for piece in engine.stream_tokens(messages):
            text += piece
            if not word and len(text.split()) > 1:
                word = time.perf_counter() - began
            yield piece

    next(sentences(watched()), None)
    sentence = time.perf_counter() - began
    return 1000 * (word or sentence), 1000 * sentence


if __name__ == "__main__":
    main()
