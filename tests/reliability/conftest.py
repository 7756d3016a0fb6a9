"""The daemons of the daemon's own tests."""

from __future__ import annotations

from tests.daemon.conftest import serve, tiny_files

__all__ = ["serve", "tiny_files"]
