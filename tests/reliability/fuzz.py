"""Frames that no client would send, against the real front and engine.

    python -m tests.reliability.fuzz [--frames 100000]

What holds for each: a frame that is a message gets its reply, any other an error with a known code; nothing
crashes, nothing is left behind, memory stays where it was. Where atheris is installed it then looks for ways
through the decoder and the message types that random frames miss, led by coverage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from typing import Any

import msgpack
import psutil
import zmq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from draftd.ipc import codec, messages
from draftd.ipc.errors import CODES, DraftdError
from draftd.ipc.parse import parse_client, parse_daemon
from draftd.ipc.version import VERSION
from tests.daemon.conftest import Daemon, serving
from tests.daemon.desk import QUOTED, buried
from tests.reliability.daemons import make_files
from tests.reliability.record import here, record

PER_EXAMPLE = 40  # frames on one connection, before it goes
ATHERIS_RUNS = 1_000_000
PATIENCE = 60_000  # milliseconds
SILENT = ("cancel", "credit")  # messages that need no reply
ENDS = ("load", "unload")  # messages that bring or end an engine, whose life is watched here: not sent
LATE = ("clear", "prefill")  # messages that the engine replies to, perhaps after a pong
SENTINEL = "sentinel"

ids = st.one_of(st.sampled_from(["1", "2", "a" * 64, "", "a" * 65]), st.text(max_size=6))
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.floats(), st.sampled_from([0, 1, -1, 2**31, 2**53, 1e308])
)


def nested(levels: int, inner: Any) -> Any:
    """A value within so many maps and lists."""
    for level in range(levels):
        inner = {"items": inner} if level % 2 else [inner]
    return inner


deep = st.builds(nested, st.sampled_from([30, 61, 62, 63, 64, 65, 300]), st.just({"type": "integer"}))
atoms = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=12), st.binary(max_size=12))
values = st.recursive(
    st.one_of(atoms, deep),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.one_of(
    st.sampled_from(sorted({name for kind in messages.CLIENT_TYPES.values() for name in kind.model_fields})),
    st.text(max_size=8),
)
types = st.one_of(st.sampled_from([*messages.CLIENT_TYPES, *messages.DAEMON_TYPES]), st.text(max_size=8))
# Those of the second strategy may be NaN, infinite or too large: refused.
biases = st.one_of(st.floats(-1e9, 1e9), st.floats())
# Real work for the engine, kept short; some of it must be refused there.
work = st.fixed_dictionaries(
    {"type": st.just("generate"), "id": ids, "max_tokens": st.integers(1, 3)},
    optional={
        "prompt": st.text(max_size=20),
        "tokens": st.lists(st.integers(0, 400), max_size=8),
        "temperature": st.floats(0.0, 100.0),
        "top_k": st.integers(0, 300),
        "top_p": st.floats(0.0, 1.0),
        "logit_bias": st.dictionaries(st.sampled_from(["1", "97", "400"]), biases, max_size=3),
        "stop": st.lists(st.text(max_size=3), max_size=3),
        "grammar": st.fixed_dictionaries(
            {"kind": st.sampled_from(["json_schema", "regex", "lark", "gbnf"]), "source": values}
        ),
        "speculate": st.sampled_from([True, False, "auto", "off", "model:3", "suffix:99", "chain:0"]),
        "logprobs": st.integers(0, 20),
    },
)
maps = st.one_of(
    work,
    st.builds(
        lambda kind, request, fields: {**fields, "type": kind, "id": request},
        types,
        ids,
        st.dictionaries(names, values, max_size=4),
    ),
    values,
)


def pack(value: Any) -> bytes:
    """The value as MessagePack; Unicode that UTF-8 can't say goes in as it stands."""
    frame: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return frame


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message with some bytes changed, cut or doubled."""
    frame = bytearray(pack(draw(maps)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(("change", "cut", "insert", "double"))):
            case "change":
                frame[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del frame[at:]
            case "insert":
                frame[at:at] = draw(st.binary(max_size=6))
            case "double":
                frame += frame[at:]
    return bytes(frame)


hostile = st.sampled_from(
    [
        b"",
        b"\x91" * 5000,  # nested lists
        b"\x81\xa1a" * 5000,  # nested maps
        buried(600),  # msgpack 1.1 unpacks it, but packs no more than 511
        buried(1000),
        b"\xdd\xff\xff\xff\xff",  # a list of four billion
        b"\xdf\xff\xff\xff\xff\xa4type",
        b"\xc6\xff\xff\xff\xff",  # four gigabytes of bytes
        b"\xc7\x04\x01abcd",  # an extension
        b"\xd7\xff" + b"\xff" * 8,  # a timestamp
        b"\xc1",  # what MessagePack never uses
        b"\x82\xa4type\xa4ping\xa4type\xa6status",  # a key twice
        pack({"type": "ping", "id": "x" * 1_000_000}),
        pack({"type": "generate", "id": "1", "tokens": [1.5] * 100_000}),
        pack({"type": "generate", "id": "1", "prompt": "x" * 300_000, "max_tokens": 1}),
        *(pack({"id": "1", **message}) for message in QUOTED),
    ]
)
frames = st.one_of(maps.map(pack), damaged(), st.binary(max_size=64), hostile)
sent = st.one_of(frames.map(lambda frame: [frame]), st.lists(frames, max_size=3))  # of one message


def understood(parts: list[bytes]) -> messages.ClientMessage | None:
    """The message in these frames, if they are one."""
    try:
        return parse_client(codec.decode(parts[0])) if len(parts) == 1 else None
    except DraftdError:
        return None


class Fuzz:
    """One daemon, and what it has been sent."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.frames = 0
        self.replies: Counter[str] = Counter()
        self.front = psutil.Process(daemon.process.pid)
        self.engine = daemon.engine()

    def example(self, batch: list[list[bytes]]) -> None:
        """Send these messages on one connection, each before a ping, and judge what comes before its pong."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(self.daemon.endpoint)
            self.talk(socket, pack({"type": "hello", "id": SENTINEL, "versions": [VERSION]}))
            for parts in batch:
                message = understood(parts)
                if message is not None and message.type in ENDS:
                    continue
                late = message is not None and message.type in LATE
                replies = self.talk(socket, *parts, late=late)
                self.judge(parts, message, replies)
                self.frames += max(1, len(parts))

    def talk(
        self, socket: zmq.Socket[bytes], *parts: bytes, late: bool = False
    ) -> list[messages.DaemonMessage]:
        """What the daemon says to these frames until the pong of the ping behind them, or later if `late`."""
        if parts:
            socket.send_multipart(parts)
        socket.send(pack({"type": "ping", "id": SENTINEL}))
        replies: list[messages.DaemonMessage] = []
        pong = False
        while not pong or (late and not replies):
            assert socket.poll(PATIENCE), f"the front is silent after {parts!r:.300}"
            message = parse_daemon(codec.decode(socket.recv()))
            if isinstance(message, messages.Pong) and message.id == SENTINEL:
                pong = True
            else:
                replies.append(message)
        return replies

    def judge(
        self,
        parts: list[bytes],
        message: messages.ClientMessage | None,
        replies: list[messages.DaemonMessage],
    ) -> None:
        for reply in replies:
            self.replies[reply.type if not isinstance(reply, messages.Error) else reply.code] += 1
        errors = [reply for reply in replies if isinstance(reply, messages.Error)]
        assert all(error.code in CODES for error in errors)
        if message is not None:
            assert replies or message.type in SILENT, f"no reply to {message!r:.300}"
        elif parts:
            assert errors, f"no error reply to {parts!r:.300}"

    def settle(self) -> None:
        """Wait for the engine to be done, and look whether all are still there."""
        self.daemon.wait_for(lambda status: status.requests["running"] + status.requests["waiting"] == 0)
        assert self.daemon.process.poll() is None
        assert self.engine.is_running(), f"the engine died: {self.daemon.lines.read_text()[-2000:]}"

    def memory(self) -> tuple[int, int]:
        return self.front.memory_info().rss, self.engine.memory_info().rss


def run(fuzz: Fuzz, wanted: int) -> None:
    """At least so many frames, as hypothesis chooses them; a failure comes with the frames that made it."""

    @settings(
        max_examples=1 + wanted // PER_EXAMPLE * 2,
        deadline=None,
        database=None,
        derandomize=wanted
        < 10_000,  # the same in every run of the tests; a long run looks elsewhere each time
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(sent, min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
    def examples(batch: list[list[bytes]]) -> None:
        if fuzz.frames < wanted:
            fuzz.example(batch)

    while fuzz.frames < wanted:
        examples()
    fuzz.settle()


def coverage_led(frames: int) -> str:
    """Atheris over decoder and message types in a process of its own; what came of it."""
    if find_spec("atheris") is None:
        return "not installed"
    with tempfile.TemporaryDirectory() as corpus:
        child = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.reliability.fuzz_atheris",
                f"-runs={frames}",
                "-rss_limit_mb=0",  # that would count this process's memory; the child has its own limit
                f"-artifact_prefix={corpus}/",
                corpus,
            ],
            capture_output=True,
            text=True,
            errors="replace",
        )
    if child.returncode:
        raise SystemExit(child.stderr[-4000:])
    return f"{frames} frames, no exception but draftd's own"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    wanted = parser.parse_args().frames
    led = coverage_led(ATHERIS_RUNS)
    with tempfile.TemporaryDirectory(prefix="draftd-") as folder, serving(*make_files(folder)) as serve:
        fuzz = Fuzz(serve("--slots", "2", target="same.gguf", backend="llama_cpp", queue="8"))
        run(fuzz, wanted // 10)  # caches fill, allocators grow
        before = fuzz.memory()
        began = time.monotonic()
        run(fuzz, wanted)
        after = fuzz.memory()
    common = ", ".join(f"{count} {name}" for name, count in fuzz.replies.most_common(8))
    grown = [
        f"{late / 2**20:.1f} MiB, {(late - early) / 2**20:+.1f}"
        for early, late in zip(before, after, strict=True)
    ]
    record(
        "fuzz",
        [
            here(),
            ("frames", f"{fuzz.frames} in {time.monotonic() - began:.0f} s"),
            ("crashes of front or engine; frames without their reply", "0; 0"),
            ("replies", common),
            ("resident memory of the front, and since a tenth of the frames", grown[0]),
            ("resident memory of the engine, and since a tenth of the frames", grown[1]),
            ("led by coverage (atheris)", led),
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
