"""Steps of small models, recorded as a trace has them, and a played step held to one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.played.against import _steps, heights
from memcalc.engines.analytic.estimate import estimate_whole
from memcalc.job import read_job
from memcalc.readers.source import read_model


def record(jobs: Iterable[dict[str, Any]], file: Path) -> None:
    """Trace every job anew; needs torch and transformers, and peft for adapters."""
    from memcalc.engines.trace.estimate import trace_job

    found = []
    for job in jobs:
        traced = trace_job(read_job({**job, "engine": "trace"}))
        one = heights(_steps(traced.tape, 2))
        found.append([one.top, one.net, one.saved, traced.footprint.peak.requested])
    file.write_text(json.dumps(found) + "\n")


def require_traced(job: dict[str, Any], file: Path, number: int) -> None:
    """That what is saved and left is the trace's to the byte, and both peaks within a thousandth."""
    top, left, saved, peak = json.loads(file.read_text())[number]
    whole = estimate_whole(read_job(job), read_model(job["model"]), replayed=False)
    mine = heights(_steps(whole.tape, 2))
    assert (mine.net, mine.saved) == (left, saved)
    assert abs(mine.top - top) <= 0.001 * top
    assert abs(whole.footprint.peak.requested - peak) <= 0.001 * peak
