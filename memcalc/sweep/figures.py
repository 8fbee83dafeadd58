"""The figures of one evaluation, by the analytic engine: of one job, or of many held as arrays. There is no other formula here.

What the engine says of a job in ints it says of many in int64 arrays, by the same code. An int64 wraps around in silence, so
the same tape is made once more in float64, which cannot, and what comes near 2**63 there is computed again in Python's ints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from memcalc.arrays import Count, is_array, rounded
from memcalc.engines.analytic.peak import steps_of
from memcalc.engines.analytic.shared import Shared
from memcalc.engines.analytic.static import MODELLED, Account, accounts, allocated_bound
from memcalc.engines.analytic.structures import Structure
from memcalc.engines.analytic.tapes import steady_tape
from memcalc.errors import NotModelledError
from memcalc.job import Job
from memcalc.models import Model
from memcalc.parallelism.base import ScalarOnlyError
from memcalc.plan import Plan
from memcalc.plan_checks import check_parameters, check_settings
from memcalc.reading import Reading
from memcalc.tape.events import COMPONENTS, Alloc, Event, Repeat, Role
from memcalc.tape.fold import requested
from memcalc.tape.forms import forms_of
from memcalc.textbook import STATES_PER_PARAMETER
from memcalc.units import checked_bytes

Figures = dict[str, Count]
"""Column -> bytes; a column that is missing is null."""

MANY_PARAMETERS = 2**50
"""From here on jobs are taken one by one: below, no product of a count and a dtype's size on the way to a figure can wrap."""
STEP_ROLES: tuple[Role, ...] = ("parameter_copy", "gradient", "input", "activation", "temporary", "communication", "workspace")
"""Roles whose highest point the step decides."""
MANY_TOKENS, MANY_SCORES = 2.0**33, 2.0**41
"""So are jobs of so many tokens, or of so many pairs of tokens that may look at each other: below, 2**29 bytes of each token
and 2**21 of each pair, more than any layers take, come to no more than int64 holds."""
NEAR = 2.0**62
"""A total that float64 finds this large may not fit int64."""


AT_ONCE = 2**13
"""Jobs that formulas are read for at once: an array of so many is 64 KiB, and dozens of them stay in a processor's cache."""


def figures(job: Job, plan: Plan, model: Model, ranks: int, shared: tuple[Shared, object] | None = None) -> Figures:
    """Every figure, for one job or for many.

    Args:
        job: its settings; the sizes of its batch may be arrays.
        plan: the job resolved; ranks and accumulation may be arrays.
        model: its tensors; sizes may be arrays, of a shape that broadcasts with the plan's.
        ranks: 1, or any larger number where there are several.
        shared: what was played for such jobs before, and what makes the model the one it is; None for one job.

    Raises:
        InputError: as an estimate does.
        ScalarOnlyError: this layout goes tensor by tensor, and sizes are arrays.
        SplitError: the jobs' steps differ in structure.
    """
    check_parameters(plan, model)
    # a sequence length is no error of a model of images, which may be swept beside models of text
    check_settings(job.model_copy(update={"training": job.training.model_copy(update={"sequence_length": None})}), model)
    account = shared[0].kept(_fullest, plan, model, ranks) if shared is not None else _fullest(plan, model, ranks)
    tops = account.by_requested.stretch.role_top
    known = [role for role in MODELLED if role not in account.layout.partial]
    found: Figures = {COMPONENTS[role]: tops.get(role, 0) for role in known}
    found |= {part: account.parts[part] for part in ("momentum", "variance") if part in account.parts}
    found["host_optimizer_states"] = account.host
    found["states_requested"] = account.by_requested.stretch.top
    found["states_rounded"] = found["peak_low"] = account.by_rounded.stretch.top
    found["states_bound"] = account.by_bound.stretch.top
    found["num_parameters"] = model.num_parameters
    if job.scope == "step":
        found |= _step(job, plan, model, ranks, account, shared)
    textbook = STATES_PER_PARAMETER.get(plan.optimizer.name)
    if textbook is not None and textbook == int(textbook):
        states = int(textbook) * model.num_trainable_parameters
        found["textbook_optimizer_states_per_rank"] = states // plan.shards if plan.stage else states
    return found


def _fullest(plan: Plan, model: Model, ranks: int) -> Account:
    """What the fullest rank keeps."""
    return accounts(plan, model, ranks)[0]


def _step(job: Job, plan: Plan, model: Model, ranks: int, account: Account, shared: tuple[Shared, object] | None) -> Figures:
    """What the whole step comes to; nothing where it cannot be played."""
    try:
        if shared is not None and (found := shared[0].find(shared[1], job, plan, model, account, ranks)) is not None:
            return _read(*found)
        steps, _ = steps_of(job, plan, model, account, ranks)
    except NotModelledError:
        return {}
    if len(steps) > 1 and any(is_array(size) for size in (job.training.micro_batch_size, job.training.sequence_length)):
        raise ScalarOnlyError  # which rank is the highest differs from job to job
    forms = max((forms_of(steady_tape(*step)) for step in steps), key=lambda forms: forms.top(rounded) if len(steps) > 1 else 0)
    return _told(forms.role_tops(requested), forms.top(requested), forms.top(rounded), forms.top(allocated_bound))


def _read(structure: Structure, reading: Reading) -> Figures:
    """The same from formulas."""
    measures = [structure.arrays().measured(measure) for measure in (requested, rounded, allocated_bound)]
    parts: list[tuple[slice, Figures]] = []
    for mine, piece in reading.pieces(AT_ONCE):
        asked, blocks, bound = (measured.read(piece) for measured in measures)
        parts.append((mine, _told(asked.role_tops(STEP_ROLES), asked.top(), blocks.top(), bound.top())))
    return {column: _joined([(mine, part[column]) for mine, part in parts], reading.jobs) for column in parts[0][1]}


def _joined(parts: Sequence[tuple[slice, Count]], jobs: int) -> Count:
    """A column of some jobs' figures, from those of all; one number that holds for all of them stays one."""
    first = parts[0][1]
    if all(not is_array(value) and value == first for _, value in parts):
        return first
    whole = np.empty(jobs, dtype=np.int64)
    for mine, value in parts:
        whole[mine] = value
    return whole


def _told(tops: dict[Role, Count], asked: Count, blocks: Count, bound: Count) -> Figures:
    return {
        **{COMPONENTS[role]: tops.get(role, 0) for role in STEP_ROLES},
        "peak_requested": asked,
        "peak_rounded": blocks,
        "peak_bound": bound,
        "peak_low": blocks,
    }


def exact_figures(job: Job, plan: Plan, model: Model, ranks: int) -> Figures:
    """The figures of one job in Python's ints.

    Raises:
        InputError: as an estimate does; a total of 2**63 bytes or more among them.
    """
    found = figures(job, plan, model, ranks)
    checked_bytes(int(found["states_bound"]), "states")
    checked_bytes(int(found.get("peak_rounded", 0)), "the step")
    for column in found:
        checked_bytes(int(found[column]), column)
    return found


def suspects(plan: Plan, model: Model, ranks: int) -> Any:
    """Whether int64 may not hold each job's figures: a bool, or an array that broadcasts with the jobs'."""
    plan = replace(plan, shards=_float(plan.shards), replicas=_float(plan.replicas), accumulation=_float(plan.accumulation))
    return np.asarray(_ever(accounts(plan, model, ranks)[0].tape)) >= NEAR


def _ever(tape: Iterable[Event]) -> Any:
    """Bytes that are ever allocated, if none were freed: at least any total, in any place and measure."""
    total: Any = 0
    for event in tape:
        if isinstance(event, Alloc):
            total = total + allocated_bound(event.buffer.requested)
        elif isinstance(event, Repeat):
            total = total + event.times * _ever(event.body)
    return total


def _float(value: Count) -> Any:
    return value.astype(np.float64) if isinstance(value, np.ndarray) else value
