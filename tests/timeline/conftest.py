"""What the tests of timelines share: a small step of a transformer, with and without a footprint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memcalc.api import estimate
from memcalc.timeline.timeline import Timeline
from tests.timeline.demo import series, tape


@pytest.fixture(scope="session")
def step():
    """Two iterations of a transformer of three layers, with the allocator's two series."""
    events = tape(2, layers=3, width=256, vocabulary=1000, batch=2, length=128)
    allocated, reserved = series(events)
    return Timeline.of(events, allocated=allocated, reserved=reserved)


@pytest.fixture(scope="session")
def footprint():
    """An answer with a verdict, assumptions, and a warning that would be markup if anyone let it."""
    told = estimate("gpt2", gpu="h100-80gb", optimizer="adamw8bit")
    return replace(told, warnings=(*told.warnings, "<b>1 < 2 & 3</b>"))
