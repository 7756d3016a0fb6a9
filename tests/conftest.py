"""What tests of several folders share."""

from __future__ import annotations

import signal
from pathlib import Path

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

# The files that take longest, in that order: begun last, one of them would have the other workers wait.
LONG = (
    "reliability/test_reliability.py",
    "daemon/test_serve.py",
    "daemon/test_bench_run.py",
    "exactness/test_drafts.py",
    "daemon/test_notify.py",
    "daemon/test_citizen.py",
    "daemon/test_keeping.py",
    "daemon/test_prefill.py",
    "daemon/test_history.py",
    "daemon/test_answers.py",
    "daemon/test_pairs.py",
    "daemon/test_page.py",
    "daemon/test_faults.py",
    "models/test_attention.py",
    "test_real_pairs.py",
    "daemon/test_hangs.py",
    "daemon/test_bench_quality.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(LONG)))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The smollm2 pair in the user's cache, fetched (98 MB) and converted the first time."""
    own = load_settings()
    for model in load_catalog().pair("smollm2").models:
        ensure_transformers(ensure(model, own.cache_dir), own.cache_dir, own.dtype)
    return "smollm2"
