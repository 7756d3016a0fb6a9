"""`draftd-desktop`: run the service, or put the files in place by which the desktop starts it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
from importlib import resources
from pathlib import Path

from dbus_fast import NameFlag, RequestNameReply
from dbus_fast.aio import MessageBus

from draftd.ipc import AsyncClient, DraftdError
from draftd.ipc.endpoint import resolve
from draftd_desktop.assistant import NAME, Assistant
from draftd_desktop.krunner import Runner

FILES = {  # what lies beside this file, and where under the user's data directory it belongs
    "org.draftd.Assistant1.service": "dbus-1/services/org.draftd.Assistant1.service",
    "draftd.desktop": "krunner/dbusplugins/draftd.desktop",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="draftd-desktop", description=__doc__)
    parser.add_argument("--endpoint", help="the daemon's socket, if it is not the usual one")
    parser.add_argument("command", nargs="?", choices=("serve", "install", "uninstall"), default="serve")
    given = parser.parse_args()
    try:
        resolve(given.endpoint)
    except DraftdError as error:
        parser.error(error.message)
    if given.command == "serve":
        sys.exit(asyncio.run(serve(given.endpoint)))
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    for name, place in FILES.items():
        file = data / place
        if given.command == "uninstall":
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content(name, given.endpoint), "utf-8")
        print(f"{'removed' if given.command == 'uninstall' else 'wrote'} {file}")


def content(name: str, endpoint: str | None) -> str:
    # -P: the bus starts it where it likes, perhaps in the home, with whatever modules are there
    command = [sys.executable, "-P", "-m", "draftd_desktop.main"]
    command += ["--endpoint", endpoint] if endpoint else []
    text = resources.files(__package__).joinpath(name).read_text("utf-8")
    return text.replace("@COMMAND@", shlex.join(command))


async def serve(endpoint: str | None) -> int:
    """Answer on the session bus until it goes, or SIGTERM; the exit status."""
    try:
        bus = await MessageBus().connect()
    except Exception as error:  # no address, no socket, no permission: each has an exception of its own
        print(
            f"no session bus: {error or type(error).__name__}; run it inside a desktop session",
            file=sys.stderr,
        )
        return 1
    async with AsyncClient(endpoint, name="draftd-desktop") as client:
        assistant = Assistant(bus, client)
        await assistant.export()
        await Runner(bus, assistant).export()
        if await bus.request_name(NAME, NameFlag.DO_NOT_QUEUE) is not RequestNameReply.PRIMARY_OWNER:
            print(f"{NAME} is on the bus already: another draftd-desktop runs", file=sys.stderr)
            return 5
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, bus.disconnect)
        with contextlib.suppress(EOFError, ConnectionError):  # the desktop's session has ended
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
    return 0


if __name__ == "__main__":
    main()
