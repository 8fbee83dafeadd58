"""Peaks of many jobs of one plan at once: one tape shape, sizes as arrays, and jobs apart where their structure is another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, SplitError, maximum, rounded
from memcalc.engines.analytic.peak import steps_of
from memcalc.engines.analytic.static import accounts
from memcalc.engines.analytic.tapes import steady_tape
from memcalc.inference import check_inference, trains
from memcalc.job import Job
from memcalc.models import Model
from memcalc.plan import Plan, make_plan
from memcalc.plan_checks import check_parameters
from memcalc.prepared import prepared
from memcalc.tape.fold import fold

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


def peaks(job: Job, model: Model, key: str, values: Sequence[int]) -> Array:
    """The step's peak in blocks of 512 B, for each value of one of the training's sizes.

    Args:
        job: everything else.
        model: its model.
        key: ``micro_batch_size`` or ``sequence_length``, or in decoding ``context_length``.
        values: of it, above zero.

    Raises:
        NotModelledError: the step of this job cannot be played.
        InputError: as an estimate does.
    """
    import numpy

    model = prepared(model, job)
    plan = make_plan(job)
    if not trains(job):
        return _forwards(job, plan, model, key, numpy.asarray(values, dtype=numpy.int64))
    check_parameters(plan, model)
    account = accounts(plan, model, int(plan.shards * plan.replicas))[0]

    def run(some: Array) -> Any:
        sizes = int(some[0]) if len(some) == 1 else some
        asked = job.model_copy(update={"training": job.training.model_copy(update={key: sizes})})
        steps, _ = steps_of(asked, plan, model, account)
        return highest(fold(steady_tape(*step), rounded).stretch.top for step in steps)

    return apart(run, numpy.asarray(values, dtype=numpy.int64))


def _forwards(job: Job, plan: Plan, model: Model, key: str, values: Array) -> Array:
    """The same of a model that does not train."""
    from memcalc.engines.analytic.evaluated import kept, top_of

    check_inference(job)
    account = kept(plan, model)
    section = "inference" if key == "context_length" else "training"

    def run(some: Array) -> Any:
        sizes = int(some[0]) if len(some) == 1 else some
        asked = job.model_copy(update={section: getattr(job, section).model_copy(update={key: sizes})})
        return top_of(asked, plan, model, account)

    return apart(run, values)


def highest(tops: Iterable[Count]) -> Count:
    """The highest of several ranks, job by job.

    >>> highest([3, 7, 5])
    7
    """
    most: Count = 0
    for top in tops:
        most = maximum(most, top)
    return most


def apart(run: Callable[[Array], Any], values: Array) -> Array:
    """A function of an array of sizes, called once for all or, where their structures differ, for each kind of them."""
    import numpy

    found = numpy.empty(len(values), dtype=numpy.int64)
    waiting = [numpy.arange(len(values))]
    while waiting:
        places = waiting.pop()
        try:
            found[places] = run(values[places])
        except SplitError as split:
            told = numpy.broadcast_to(split.condition, len(places))
            waiting += [places[told], places[~told]]
    return found
