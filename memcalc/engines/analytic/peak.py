"""The peak of the whole step: played, folded, and played through the allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memcalc.allocator.settings import AllocatorSettings, asked_settings
from memcalc.arrays import is_array, rounded
from memcalc.behaving import Assumed, behaviour_of
from memcalc.engines.analytic.explain import PLAYED, held_by_role
from memcalc.engines.analytic.static import Account, gradients_held, keeps_gradients
from memcalc.engines.analytic.step import Around, Played, engine_hooks, family_of, play_step, steady_tape, two_steps
from memcalc.engines.analytic.update import clip_events, step_events
from memcalc.engines.analytic.whole import Whole
from memcalc.errors import NotModelledError
from memcalc.families.base import Family
from memcalc.footprint import Components, Footprint, Held, Peak
from memcalc.job import Job
from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.plan import Plan
from memcalc.tape.events import COMPONENTS, ROLES, Event, Phase
from memcalc.tape.fold import Fold, fold, requested

ENGINES = ("torch", "fsdp2")
"""Data-parallel engines whose step is played."""


def whole_step(
    job: Job, plan: Plan, model: Model, account: Account, footprint: Footprint, *, replayed: bool, explained: bool
) -> Whole:
    """The footprint with the peak of the step, where the step can be played; else as it is, with the reason.

    ``replayed`` asks for what the allocator makes of it, ``explained`` for the buffers behind each component.
    """
    try:
        played, assumed = played_of(job, plan, model)
    except NotModelledError as error:
        said = f"the peak of the step is not modelled: {error}; peak.low is what the states alone take"
        return Whole(replace(footprint, warnings=(*footprint.warnings, said)))
    around = around_of(plan, model, account, assumed.behaviour.chip)
    settings = asked_settings(job)
    return _read(footprint, around, played, assumed, settings, replayed=replayed, explained=explained)


def played_of(job: Job, plan: Plan, model: Model, ranks: int | None = None) -> tuple[Played, Assumed]:
    """Forward and backward of the job, and what they were assumed to run on; ``ranks`` where the plan's are arrays.

    Raises:
        NotModelledError: they cannot be played.
    """
    family = _playable(plan, model)
    several = (int(plan.shards * plan.replicas) if ranks is None else ranks) > 1
    assumed = behaviour_of(job, read=False)
    # DDP's buckets hold the gradients where they are views of them (torch/csrc/distributed/c10d/reducer.cpp)
    in_buckets = several and bool(plan.zero_args.get("gradient_as_bucket_view"))
    hooks = engine_hooks(plan, model)
    return play_step(job, plan, model, family, assumed.behaviour, in_buckets=in_buckets, hooks=hooks), assumed


def _playable(plan: Plan, model: Model) -> Family:
    """The family whose step is played.

    Raises:
        NotModelledError: several ranks, another engine's layout, or a model of which only the tensors are known.
    """
    if model.root is None or model.architecture is None:
        raise NotModelledError(
            "model", model.name, "is known by its tensors alone", "name an architecture, or use engine trace"
        )
    if plan.backend not in ENGINES:  # DDP and ZeroRedundancyOptimizer leave forward and backward as they are on one rank
        raise NotModelledError(
            "parallelism", plan.backend, "has a step that is not played yet", "use zero_backend torch or fsdp2"
        )
    if plan.optimizer.frees_gradients:
        raise NotModelledError("training.optimizer", plan.optimizer.name, "updates inside backward, which is not played yet")
    return family_of(model)


def around_of(plan: Plan, model: Model, account: Account, chip: Chip) -> Around:
    """What stands around the played part: what the layout keeps, clipping, and the optimizer's step."""
    layout = account.layout
    return Around(
        resident=(*layout.resident, *(gradients_held(plan, layout) if keeps_gradients(plan) else ())),
        states=[holding for _, holding in account.states],
        clip=clip_events(plan, layout, model, chip=chip),
        update=step_events(plan, layout, model, chip=chip),
    )


def _read(
    footprint: Footprint, around: Around, played: Played, assumed: Assumed, settings: AllocatorSettings | None, *,
    replayed: bool, explained: bool,
) -> Whole:  # fmt: skip
    from memcalc.bounds import bounded

    tape = steady_tape(around, played)
    by_requested, by_rounded = fold(tape, requested), fold(tape, rounded)
    steps = two_steps(around, played)
    through = _through(steps, settings) if replayed else None
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
                    allocated=None if through is None else max(peaks["allocated"] for peaks in through.values()),
                    reserved=None if through is None else max(peaks["reserved"] for peaks in through.values()),
                    low=int(by_rounded.stretch.top), phase=phase, instant=instant, iteration=2,
                ),
                at_peak={
                    COMPONENTS[role]: int(size) for role in ROLES if (size := by_rounded.stretch.at_top.get(role, 0))
                },
                phases=footprint.phases if through is None else _phases(footprint, through),
                assumptions=(*footprint.assumptions, *assumed.assumptions, *played.assumed),
                buffers=_explained(footprint, tape) if explained else footprint.buffers,
            )
        ),
        steps,
    )  # fmt: skip


def _explained(footprint: Footprint, tape: Sequence[Event]) -> tuple[Held, ...]:
    """What the layout keeps, and of the other components what the played step holds."""
    always = any(held.component == COMPONENTS["communication"] for held in footprint.buffers)
    played = {COMPONENTS[role] for role in PLAYED if not (always and role == "communication")}
    kept = [held for held in footprint.buffers if held.component not in played]
    return (*kept, *(held for held in held_by_role(tape) if held.component in played))


def _through(steps: Sequence[Event], settings: AllocatorSettings | None) -> dict[Phase, dict[str, int]]:
    """What the allocator makes of the second of two iterations, phase by phase."""
    from memcalc.allocator.summits import summits

    return {phase: peaks for (iteration, phase), peaks in summits(steps, settings).items() if iteration == 2}


def _components(known: Components, by_requested: Fold) -> Components:
    """Each role's own highest point over the whole step."""
    tops = by_requested.stretch.role_top
    assert not any(is_array(top) for top in tops.values()), "one job's"
    found = {COMPONENTS[role]: int(tops.get(role, 0)) for role in ROLES if role != "context"}
    return replace(known, **found)


def _phases(footprint: Footprint, through: dict[Phase, dict[str, int]]) -> dict[str, dict[str, int | None]]:
    """Each phase's highest points, beside what the states alone come to."""
    found: dict[str, dict[str, int | None]] = {}
    for phase, peaks in through.items():
        states = footprint.phases.get(phase, {})
        own: dict[str, int | None] = {f"peak_{name}": peak for name, peak in peaks.items()}
        found[phase] = {**own, **{key: value for key, value in states.items() if key != "peak_allocated"}}
    return found
