"""What each form of draftd and of its peers takes in memory, alone in a process of its own.

    python bench/memory.py --backend transformers --prompts FILE.jsonl --json OUT.json

One form after the other is started, asked the file's first prompt once, and ended. In bench/side_by_side.py,
which asks in turns, all forms of a peer are in one process. `--python PEER=PATH` names the interpreter that
has a peer's library (`make bench-memory` makes it).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import documents
import psutil
from contenders import (
    OF_BACKEND,
    daemon_settings,
    draftd,
    leave_out_unknown,
    model_files,
    parser,
    peer_settings,
    requests,
)
from peer_process import Contender, PeerFailed, leave_out, peer, spoken
from tables import table

from draftd.daemon.bench_files import read_prompts, write
from draftd.ipc.errors import DraftdError

OWN = {  # draftd's forms: what a request asks for, and whether there is a draft in memory
    "draftd, target alone": ("off", {"DRAFTD_SPECULATE": "false"}),
    "draftd": ("auto", {"DRAFTD_SPECULATE": "true"}),
}
HEADS = ("form", "peak MiB", "after the answer MiB", "times the target's file")

Form = dict[str, Any]  # name, peak_bytes (None: the system does not tell), after_bytes
Keep = Callable[[Contender], None]


def main() -> None:
    options = parser(__doc__, max_tokens=32).parse_args()
    prompt = read_prompts(options.prompts, 1)[0]
    settings, variables = daemon_settings(options)
    files = model_files(options.pair, settings)
    (body,) = requests([prompt], files, options.max_tokens, temperature=0.0)
    forms: list[Form] = []
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    document = documents.begin(
        "memory",
        pair=options.pair,
        backend=options.backend,
        threads=options.threads,
        context=options.context,
        slots=settings.slots,
        max_tokens=options.max_tokens,
        target_bytes=Path(files["target_gguf"]).stat().st_size,
        versions=versions,
        missing=missing,
        forms=forms,
    )

    def keep(contender: Contender) -> None:
        forms.append(measure(contender, body))
        write(options.json, document)  # after each form: what was measured is kept if a later one fails
        documents.tell(f"{contender.name}: {mebibytes(forms[-1]['after_bytes'])} MiB after its answer")

    for name, (policy, drafting) in OWN.items():
        if not options.only or name in options.only:
            try:
                with draftd(options.pair, [policy], variables | drafting) as (contender,):
                    keep(replace(contender, name=name))
            except (DraftdError, PeerFailed) as error:
                leave_out(name, str(error), missing)
    pythons = dict(options.python)
    for name in OF_BACKEND[options.backend]:
        asked = peer_settings(name, files, options, settings)
        if asked["only"] != []:
            python = pythons.get(name, sys.executable)
            if version := each_alone(name, python, asked, missing, keep):
                versions[spoken(name)] = version
    leave_out_unknown(options.only, [form["name"] for form in forms], missing)
    if not forms:
        sys.exit("nothing was measured: no form is left")
    write(options.json, document)
    print("\n".join(lines(document)))


def each_alone(name: str, python: str, asked: dict[str, Any], missing: dict[str, str], keep: Keep) -> str:
    """Each wanted form of a peer in a process of its own; the version of the peer's library."""
    with peer(name, python, asked | {"only": []}, missing) as found:  # nothing is built: what is there?
        pass
    label = spoken(name)
    for mode in found.offered:
        form = f"{label} {mode}"
        if form in missing or (asked["only"] is not None and mode not in asked["only"]):
            continue
        try:
            with peer(name, python, asked | {"only": [mode]}, missing) as alone:
                for contender in alone.contenders:
                    keep(contender)
        except PeerFailed as error:
            leave_out(form, str(error), missing)
        if label in missing:  # said of the peer where its process ended: here it is this form
            missing[form] = missing.pop(label)
    return found.version


def measure(contender: Contender, body: dict[str, Any]) -> Form:
    """A form's figures once it has answered; PeerFailed or a DraftdError if it does not."""
    contender.ask(body)
    after = held(contender.pids)
    return {"name": contender.name, "peak_bytes": peak(contender.pids), "after_bytes": after}


def held(pids: Sequence[int]) -> int:
    """The resident bytes of processes together; PeerFailed if one of them has ended."""
    try:
        found = [psutil.Process(pid).memory_info().rss for pid in pids]
    except psutil.NoSuchProcess:
        found = [0]
    if not all(found):  # one that nobody has waited for yet holds 0
        raise PeerFailed("a process of it ended while it answered")
    return sum(found)


def peak(pids: Sequence[int], root: Path = Path("/proc")) -> int | None:
    """The most bytes that were resident in each process, summed; None where the system does not tell.

    Linux alone has it, as VmHWM of proc_pid_status(5) in KiB: psutil reads no peak there.
    """
    total = 0
    for pid in pids:
        try:
            status = (root / str(pid) / "status").read_text("utf-8", "replace")
        except OSError:
            return None
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmHWM" not in fields:
            return None
        total += int(fields["VmHWM"].split()[0]) * 1024
    return total


def lines(document: dict[str, Any]) -> list[str]:
    """How to read the table, a line a form, and what could not be had."""
    size = document["target_bytes"]
    forms = document["forms"]
    unknown = any(form["peak_bytes"] is None for form in forms)
    made = [
        f"Each form alone, asked one prompt once ({document['max_tokens']} tokens at most), with "
        f"{document['threads']} threads and a context of {document['context']} positions: draftd for "
        f"{document['slots']} requests at once (its `slots`), the others for one. *peak*: the most that was "
        "resident from the start to the answer's end, so with what loading took (Linux's VmHWM). *times*: "
        f"that over the target's GGUF file of {mebibytes(size)} MiB. Mapped pages of files are resident "
        "too. draftd is two processes, front and engine, and its figures are their sums: what both "
        "share counts twice, and their peaks need not be of one moment. OpenVINO converts a draft "
        "that is a GGUF in its own process, whose peak has that too."
        + (" -: this system tells no peak; *times* is of the memory after the answer." if unknown else "")
        + documents.libraries(document),
        "",
        *table(HEADS, [cells(form, size) for form in forms]),
    ]
    for label, reason in document["missing"].items():
        made += ["", f"{label}: not measured ({documents.without_folders(reason)})."]
    return [*made, ""]


def cells(form: Form, size: int) -> list[str]:
    """One form's line; `size`: bytes of the target's file."""
    after = form["after_bytes"]
    most = after if form["peak_bytes"] is None else form["peak_bytes"]
    told = "-" if form["peak_bytes"] is None else mebibytes(most)
    return [form["name"], told, mebibytes(after), f"{most / size:.2f}"]


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f}"


if __name__ == "__main__":
    documents.run(main)
