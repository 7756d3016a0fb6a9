"""One file over HTTP: resumed where it stopped, bounded waits, a full disk said plainly."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx

from draftd.ipc.errors import DiskFull, DraftdError, InvalidConfig

CONNECT_SECONDS = 5.0  # a source that can't be reached costs this much
READ_SECONDS = 30.0  # silence after which a connection counts as cut
_TRIES = 3  # in a row without a single new byte
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


Advance = Callable[[int, int | None], None]  # bytes that are there, bytes in all (None: not told)


class SourceFailed(Exception):
    """Why one source did not give the file, as half a sentence; the next source is tried."""


class WrongContent(SourceFailed):
    """The source answered with something other than the catalog's file."""


def download(
    url: str,
    part: Path,
    *,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    advance: Advance = lambda done, total: None,
) -> Mapping[str, str]:
    """Bring `part` to the whole content of `url`, going on after the bytes it has; the first reply's headers.

    Raises SourceFailed when it can't be reached, refuses or stops, with what came kept in `part`; DiskFull.
    """
    idle = 0
    with _client() as client:
        while True:
            before = length(part)
            try:
                return _attempt(client, url, part, size, headers or {}, advance)
            except httpx.TransportError as error:
                idle = idle + 1 if length(part) <= before else 0
                if idle >= _TRIES or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    raise SourceFailed(_reason(error)) from None
            except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                raise SourceFailed(f"it can't be asked: {error}") from None


def _client() -> httpx.Client:
    # The system's certificates and certifi's: a company's own root is in the first, some systems have none.
    trust = httpx.create_ssl_context()
    trust.load_default_certs()
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        return httpx.Client(timeout=timeout, verify=trust, follow_redirects=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # of a proxy's kind or address
        mend = "change HTTPS_PROXY or ALL_PROXY"
        raise SourceFailed(f"the proxy that the environment names can't be used ({error}): {mend}") from None


def _attempt(
    client: httpx.Client,
    url: str,
    part: Path,
    size: int | None,
    headers: Mapping[str, str],
    advance: Advance,
) -> Mapping[str, str]:
    start = length(part)
    wanted = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    response = _open(client, client.build_request("GET", url, headers=wanted))
    try:
        first = (response.history or [response])[0].headers
        if response.status_code == 416:  # the part is all of it already, or longer than the file is
            if _total(response) == start and start == (size or start):
                return first
            start = 0
            part.unlink()
            raise httpx.ReadError("the partial file did not fit; starting again")
        if not response.is_success:
            raise SourceFailed(f"it answered {response.status_code} {response.reason_phrase}")
        if response.status_code != 206:
            start = 0
        total = _total(response)
        if size is not None and total is not None and total != size:
            raise WrongContent(f"its file has {total} bytes where the catalog says {size}")
        with writing(part, total and total - start):
            part.parent.mkdir(parents=True, exist_ok=True)
            with part.open("r+b" if start else "wb") as file:
                file.truncate(start)
                file.seek(start)
                advance(start, total)
                for chunk in response.iter_raw():
                    file.write(chunk)
                    start += len(chunk)
                    advance(start, total)
        if total is not None and start != total:
            raise httpx.ReadError("the connection closed early")
        return first
    finally:
        response.close()


def _open(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    """Send, but give up after CONNECT_SECONDS without a connection.

    httpx bounds each address it tries, not the name look-up before: only a thread can bound the whole.
    """
    connected = threading.Event()
    outcome: list[httpx.Response | Exception] = []

    def trace(event: str, info: object) -> None:
        if event.startswith("http11."):
            connected.set()

    def send() -> None:
        try:
            outcome.append(client.send(request, stream=True))
        except Exception as error:
            outcome.append(error)
        connected.set()

    request.extensions["trace"] = trace
    thread = threading.Thread(target=send, name="draftd-connect", daemon=True)
    thread.start()
    if not connected.wait(CONNECT_SECONDS):
        raise httpx.ConnectTimeout(f"no connection within {CONNECT_SECONDS:g} seconds")
    thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _total(response: httpx.Response) -> int | None:
    """Bytes of the whole file, not of what is left of it."""
    if match := re.search(r"/(\d+)$", response.headers.get("Content-Range", "")):
        return int(match[1])
    told = response.headers.get("Content-Length", "")
    return int(told) if response.status_code == 200 and told.isdigit() else None


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} seconds"
    if isinstance(error, httpx.ConnectError):
        return f"no connection: {error}"
    return f"the connection broke: {error or type(error).__name__}"


def after(before: int, total: int | None, advance: Advance) -> Advance:
    """An `advance` for one of several files, of which `before` bytes came earlier."""
    return lambda done, _: advance(before + done, total)


def length(path: Path) -> int:
    """Bytes in the file, 0 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def writing(path: Path, needed: int | None) -> Iterator[None]:
    """Check there is room for `needed` bytes more, and turn what the disk refuses into one sentence."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if needed is not None and shutil.disk_usage(path.parent).free < needed:
            raise _full(path, needed)
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(path, needed) from None
        mend = "set cache_dir to a folder of yours"
        raise InvalidConfig(f"cannot write {path}: {error.strerror}; {mend}") from None


def _full(path: Path, needed: int | None) -> DraftdError:
    free = shutil.disk_usage(path.parent).free
    room = f"{needed:,} bytes are needed and {free:,} are free" if needed else f"{free:,} bytes are free"
    return DiskFull(
        f"the disk under {path.parent} is full: {room}; make room and pull again, it goes on from there"
    )
