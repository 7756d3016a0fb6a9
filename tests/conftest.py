"""What tests of several folders share."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

from draftd.daemon.settings import load as load_settings
from draftd.models.catalog import load_catalog
from draftd.models.convert import ensure_transformers
from draftd.models.fetch import ensure

# How long an example takes says something of the machine only.
settings.register_profile("draftd", deadline=None)
settings.load_profile("draftd")

# A shell's background job inherits an ignored Ctrl-C, and so would the children that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The smollm2 pair in the user's cache, fetched (98 MB) and converted the first time."""
    own = load_settings()
    for model in load_catalog().pair("smollm2").models:
        ensure_transformers(ensure(model, own.cache_dir), own.cache_dir, own.dtype)
    return "smollm2"
