"""The peak of the whole step: played, folded, and played through the allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from memcalc.arrays import is_array, rounded
from memcalc.behaving import Assumed, behaviour_of
from memcalc.engines.analytic.static import Account
from memcalc.engines.analytic.step import Around, Played, family_of, play_step, steady_tape, two_steps
from memcalc.engines.analytic.whole import Whole
from memcalc.errors import NotModelledError
from memcalc.families.base import Family
from memcalc.footprint import Components, Footprint, Peak
from memcalc.job import Job
from memcalc.models import Model
from memcalc.plan import Plan
from memcalc.tape.events import COMPONENTS, ROLES, Event, within
from memcalc.tape.fold import Fold, fold, requested

if TYPE_CHECKING:
    from memcalc.allocator.played import Replay


def whole_step(job: Job, plan: Plan, model: Model, account: Account, needs: Sequence[Any], footprint: Footprint) -> Whole:
    """The footprint with the peak of the step, where the step can be played; else as it is, with the reason.

    ``needs`` are the moments of the optimizer's step.
    """
    try:
        played, assumed = played_of(job, plan, model)
    except NotModelledError as error:
        said = f"the peak of the step is not modelled: {error}; peak.low is what the states alone take"
        return Whole(replace(footprint, warnings=(*footprint.warnings, said)))
    around = around_of(account, needs)
    return _read(job, footprint, around, played, assumed)


def played_of(job: Job, plan: Plan, model: Model) -> tuple[Played, Assumed]:
    """Forward and backward of the job, and what they were assumed to run on.

    Raises:
        NotModelledError: they cannot be played.
    """
    family = _playable(job, plan, model)
    assumed = behaviour_of(job, read=False)
    return play_step(job, plan, model, family, assumed.behaviour), assumed


def _playable(job: Job, plan: Plan, model: Model) -> Family:
    """The family whose step is played.

    Raises:
        NotModelledError: several ranks, another engine's layout, or a model of which only the tensors are known.
    """
    if model.root is None or model.architecture is None:
        raise NotModelledError(
            "model", model.name, "is known by its tensors alone", "name an architecture, or use engine trace"
        )
    if int(plan.shards * plan.replicas) > 1 or plan.stage or plan.backend != "torch":
        raise NotModelledError("parallelism", plan.backend, "has a step over several ranks that is not played yet")
    if plan.optimizer.frees_gradients:
        raise NotModelledError("training.optimizer", plan.optimizer.name, "updates inside backward, which is not played yet")
    return family_of(model)


def around_of(account: Account, needs: Sequence[Any]) -> Around:
    """What stands around the played part: the layout's, and the optimizer's moments."""
    layout = account.layout
    update: list[Event] = []
    inner = [event for live in needs for event in within(live)]
    held = [(one.buffer, one.times) for one in layout.step]
    update += within(held, inner)
    return Around(layout.resident, [holding for _, holding in account.states], (), update)


def _read(job: Job, footprint: Footprint, around: Around, played: Played, assumed: Assumed) -> Whole:
    from memcalc.allocator.replay import replay
    from memcalc.bounds import bounded

    tape = steady_tape(around, played)
    by_requested, by_rounded = fold(tape, requested), fold(tape, rounded)
    steps = two_steps(around, played)
    replayed = replay(steps)
    phase, instant = by_rounded.instant()
    told = {**footprint.job, "behaviour": {**footprint.job["behaviour"], **assumed.told()}}
    return Whole(
        bounded(
            replace(
                footprint,
                job=told,
                components=_components(footprint.components, by_requested),
                peak=Peak(
                    requested=int(by_requested.stretch.top), rounded=int(by_rounded.stretch.top),
                    allocated=replayed.peak("allocated", iteration=2).bytes,
                    reserved=replayed.peak("reserved", iteration=2).bytes,
                    low=int(by_rounded.stretch.top), phase=phase, instant=instant, iteration=2,
                ),
                at_peak={
                    COMPONENTS[role]: int(size) for role in ROLES if (size := by_rounded.stretch.at_top.get(role, 0))
                },
                phases=_phases(footprint, replayed),
                assumptions=(*footprint.assumptions, *assumed.assumptions, *played.assumed),
            )
        ),
        steps,
    )  # fmt: skip


def _components(known: Components, by_requested: Fold) -> Components:
    """Each role's own highest point over the whole step."""
    tops = by_requested.stretch.role_top
    assert not any(is_array(top) for top in tops.values()), "one job's"
    found = {COMPONENTS[role]: int(tops.get(role, 0)) for role in ROLES if role != "context"}
    return replace(known, **found)


def _phases(footprint: Footprint, replayed: Replay) -> dict[str, dict[str, int | None]]:
    """Each phase's highest points, beside what the states alone come to."""
    found: dict[str, dict[str, int | None]] = {}
    for (iteration, phase), peaks in replayed.phases().items():
        if iteration == 2:
            states = footprint.phases.get(phase, {})
            own: dict[str, int | None] = {f"peak_{name}": peaks[name] for name in ("requested", "allocated", "reserved")}
            found[phase] = {**own, **{key: value for key, value in states.items() if key != "peak_allocated"}}
    return found
