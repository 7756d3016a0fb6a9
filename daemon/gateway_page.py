"""The gateway's page: a chat that marks drafted tokens, beside the daemon's live figures.

Plain files from the package, no build step. The policy lets the page load and ask nothing but this gateway,
and run no text as code.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI, Response

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cache-Control": "no-cache",  # a gateway that was updated serves its own page
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve_page(app: FastAPI) -> None:
    """Add `/` and the files that it names."""
    for file in files("draftd.daemon").joinpath("page").iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        _serve(app, path, file.read_bytes(), KINDS[file.name.rpartition(".")[2]])


def _serve(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.get(path)
    async def page() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)
