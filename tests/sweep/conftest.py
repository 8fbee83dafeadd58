"""The strict solver, for tests of code that must work on arrays."""

from __future__ import annotations

import pytest

from memcalc.sweep.solve import Solver


@pytest.fixture
def strict(monkeypatch):
    """Code that fails on arrays without saying that it cannot work on them is an error, not a reason to go one by one."""
    monkeypatch.setattr(Solver, "strict", True)
