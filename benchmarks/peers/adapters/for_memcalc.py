"""memcalc's analytic engine, asked as the others are: one case, one answer; null where it does not model the figure.

With ``--trace`` the job is one for the trace, which runs the step on tensors without data (for its time alone: what it says of
the published runs is kept in benchmarks/published/predictions.json).
"""

import sys

from worker import NotCovered, answer, serve

from benchmarks.published.convert import Question
from benchmarks.published.predict import estimated


def estimate(case):
    """The states and parameters of a model alone; of a step its peak, allocated and reserved apart."""
    if case["job"] is None:
        raise NotCovered("out of scope (docs/published-analytic.md)")
    told = Question(**case["job"])
    footprint = traced(told) if "--trace" in sys.argv else estimated(told)
    if case["kind"] == "model_init":
        parts = [getattr(footprint.components, name) or 0 for name in told.reading]
        return answer(sum(parts))
    peak = footprint.peak
    if peak.allocated is None or peak.reserved is None:
        raise NotCovered("not modelled yet: peak.allocated is null")
    return answer(peak.allocated, peak.reserved)


def traced(told):
    """The same by the trace."""
    from memcalc import api
    from memcalc.job import read_job

    return api.trace_read(read_job(told.job), lora=told.lora, loss=told.loss, inputs=told.inputs).footprint


serve("memcalc", estimate)
