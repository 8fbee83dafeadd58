"""Jobs measured here and now, each judged as a record is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from memcalc.errors import MemcalcError
from memcalc.measurement import Measurement
from memcalc.verify.files import Models
from memcalc.verify.judge import UNJUDGED, Verdict, judge
from memcalc.verify.tolerance import Tolerance

LIVE = "live"
"""The source of a verdict on a step that was just taken."""
Measure = Callable[[dict[str, Any]], Measurement | None]
"""A job to the record of its real step; None on ranks that hand theirs to another."""


def verify_live(jobs: Iterable[Mapping[str, Any]], measure: Measure, tolerance: Tolerance, models: Models) -> list[Verdict]:
    """Take each job's step for real and hold today's prediction against it; one that cannot be taken hides no other.

    Args:
        jobs: jobs as mappings.
        measure: takes a job's real step; the measure engine's.
        tolerance: how large a component's difference may be.
        models: reads the models that jobs name.
    """
    verdicts = []
    for job in jobs:
        try:
            models.permit(job.get("model"))
            record = measure(dict(job))
        except MemcalcError as error:
            verdicts.append(Verdict(str(job.get("name") or job.get("model")), LIVE, UNJUDGED, str(error)))
            continue
        if record is not None:
            verdicts.append(judge(record, LIVE, tolerance, models))
    return verdicts
