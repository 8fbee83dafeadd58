"""What every test finds."""

from __future__ import annotations

import gc
import os
import sys

import pytest
from hypothesis import settings

# Tensors here are tiny, and pytest-xdist has a worker on every core already: a second thread of OpenMP's only waits, and
# burns its core while it does. Set before anything imports torch; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# They import memcalc anew, a third of a second each where they may not keep it compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each run draws others: few of them find in a week what many find in one run.
settings.register_profile("suite", max_examples=40, deadline=None)
settings.load_profile("suite")


SEEN: list[object] = []
"""The file of the last test, and how many modules there were, by the fifty."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a file finds, and what its tests import, is none of their garbage: no collection goes through it again.

    Thousands of tests, torch and transformers are a million objects, and each trace collects a few times.
    """
    now = [item.path, len(sys.modules) // 50]
    if now != SEEN:
        SEEN[:] = now
        gc.collect()
        gc.freeze()


WAITING = ("tests/measure/test_ranks.py", "tests/measure/test_campaign.py", "tests/verify/test_ranks.py")
"""Files that start processes and wait for them; were one the last, the other workers would have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait come first."""
    items.sort(key=lambda item: not item.nodeid.startswith(WAITING))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests go to workers in one stretch each, and a worker that has none left takes of another's.

    Dealt out in turn, as is usual, both of two workers would make the fixtures of a module and import what it imports, and
    the long tests at the end would leave one of them idle.
    """
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_configure() -> None:
    """The compiled loop of the allocator, which each worker would load for its twenty-first tape, is left to its own tests."""
    from memcalc.allocator import summits

    summits.PATIENCE = 2**62
