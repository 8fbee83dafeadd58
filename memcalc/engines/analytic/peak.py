"""The peak of the whole step: played, folded, and played through the allocator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from memcalc.allocator.settings import AllocatorSettings, asked_settings
from memcalc.arrays import is_array, rounded
from memcalc.behaving import Assumed, behaviour_of
from memcalc.engines.analytic.static import Account, gradients_held, keeps_gradients
from memcalc.engines.analytic.step import family_of, play_step
from memcalc.engines.analytic.tapes import Around, Played, steady_tape, two_steps
from memcalc.engines.analytic.under import gives_up, hooks_under, is_played, ranks_under
from memcalc.engines.analytic.update import clip_events, step_events
from memcalc.engines.analytic.whole import Whole
from memcalc.errors import NotModelledError
from memcalc.families.base import Family
from memcalc.footprint import Components, Footprint, Held, Peak
from memcalc.job import Job
from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.plan import Plan
from memcalc.records import dataclass, replace
from memcalc.tape.events import COMPONENTS, ROLES, Event, Phase, Role
from memcalc.tape.fold import fold, requested
from memcalc.units import checked_bytes


def whole_step(
    job: Job, plan: Plan, model: Model, account: Account, footprint: Footprint, *, replayed: bool, explained: bool
) -> Whole:
    """The footprint with the peak of the step, where the step can be played; else as it is, with the reason.

    ``replayed`` asks for what the allocator makes of it, ``explained`` for the buffers behind each component.
    """
    try:
        steps, assumed = steps_of(job, plan, model, account)
    except NotModelledError as error:
        said = f"the peak of the step is not modelled: {error}; peak.low is what the states alone take"
        return Whole(replace(footprint, warnings=(*footprint.warnings, said)))
    around, played = steps[0] if len(steps) == 1 else max(steps, key=lambda step: fold(steady_tape(*step)).stretch.top)
    return _read(footprint, around, played, assumed, asked_settings(job), replayed=replayed, explained=explained)


def steps_of(
    job: Job, plan: Plan, model: Model, account: Account, ranks: int | None = None
) -> tuple[list[tuple[Around, Played]], Assumed]:
    """The step of each rank that may be the highest, and what it was assumed to run on; ``ranks`` where the plan's are arrays.

    Raises:
        NotModelledError: it cannot be played.
        ScalarOnlyError: the engine's step goes tensor by tensor, and ranks or tensors are arrays.
    """
    played, assumed = played_of(job, plan, model, ranks)
    chip = assumed.behaviour.chip
    around = around_of(plan, model, account, chip)
    return ranks_under(plan, model, account.layout, around, played, chip), assumed


def played_of(job: Job, plan: Plan, model: Model, ranks: int | None = None) -> tuple[Played, Assumed]:
    """Forward and backward of the job, and what they were assumed to run on; ``ranks`` where the plan's are arrays.

    Raises:
        NotModelledError: they cannot be played.
    """
    several = (int(plan.shards * plan.replicas) if ranks is None else ranks) > 1
    _refuse_together(job, plan)
    family = _playable(plan, model, several=several)
    assumed = behaviour_of(job, read=False)
    # DDP's buckets hold the gradients where they are views of them (torch/csrc/distributed/c10d/reducer.cpp)
    in_buckets = gives_up(plan) or (several and bool(plan.zero_args.get("gradient_as_bucket_view")))
    hooks = hooks_under(plan, model)
    return play_step(job, plan, model, family, assumed.behaviour, in_buckets=in_buckets, hooks=hooks), assumed


def _refuse_together(job: Job, plan: Plan) -> None:
    """Ways to train that nobody has held against a sharded engine's gathers.

    Raises:
        NotModelledError: one of them.
    """
    if plan.backend == "torch":
        return
    usual = {"freeze": [], "cross_entropy": "plain", "batch": "full"}
    for key, value in usual.items():
        if (asked := getattr(job.training, key)) != value:
            raise NotModelledError(
                f"training.{key}", asked, f"has a step that is not played under {plan.backend}", "leave one out"
            )


def _playable(plan: Plan, model: Model, *, several: bool) -> Family:
    """The family whose step is played.

    Raises:
        NotModelledError: several ranks, another engine's layout, or a model of which only the tensors are known.
    """
    if model.root is None or model.architecture is None:
        raise NotModelledError(
            "model", model.name, "is known by its tensors alone", "name an architecture, or use engine trace"
        )
    if not is_played(plan):
        raise NotModelledError(
            "parallelism.zero_stage", plan.stage, "has a step under DeepSpeed that is not played yet",
            "use zero_stage 1, 2 or 3, or zero_backend torch",
        )  # fmt: skip
    if plan.optimizer.frees_gradients and not plan.optimizer.on_arrival:
        raise NotModelledError(
            "training.optimizer", plan.optimizer.name, "copies gradients to the host inside backward, which is not played yet"
        )
    if plan.optimizer.on_arrival and several:
        raise NotModelledError("parallelism.dp", plan.optimizer.name, "reduces gradients inside backward by itself, which is "
                               "not played yet", "use one rank")  # fmt: skip
    return family_of(model)


def around_of(plan: Plan, model: Model, account: Account, chip: Chip) -> Around:
    """What stands around the played part: what the layout keeps, clipping, and the optimizer's step."""
    layout = account.layout
    return Around(
        resident=(*layout.resident, *(gradients_held(plan, layout) if keeps_gradients(plan) else ())),
        states=[holding for _, holding in account.states],
        clip=clip_events(plan, layout, model, chip=chip),
        update=step_events(plan, layout, model, chip=chip),
        born_inside=plan.frees_gradients and plan.optimizer.born != "init",
    )


def _read(
    footprint: Footprint, around: Around, played: Played, assumed: Assumed, settings: AllocatorSettings | None, *,
    replayed: bool, explained: bool,
) -> Whole:  # fmt: skip
    tape = steady_tape(around, played)
    if explained:
        footprint = replace(footprint, buffers=_explained(footprint, tape))
    return read_tapes(footprint, tape, two_steps(around, played), assumed, played.assumed, settings, replayed=replayed)


def read_tapes(
    footprint: Footprint, tape: Sequence[Event], steps: Sequence[Event], assumed: Assumed, said: Sequence[str],
    settings: AllocatorSettings | None, *, replayed: bool,
) -> Whole:  # fmt: skip
    """A footprint of what is kept, with all that its step, or its forward, comes to.

    Args:
        footprint: what is kept.
        tape: the iteration that is reported.
        steps: two iterations, of which it is the second.
        assumed: what it was assumed to run on.
        said: what was assumed on the way.
        settings: the allocator's; its defaults where None.
        replayed: whether the steps are played through it.
    """
    by_requested, by_rounded = fold(tape, requested), fold(tape, rounded)
    phase, instant = by_rounded.instant()
    stretch = by_rounded.stretch
    summit = Summit(
        int(by_requested.stretch.top), by_requested.stretch.role_top, int(stretch.top), stretch.at_top, phase, instant
    )
    found = through(steps, settings) if replayed else None
    return Whole(assembled(footprint, summit, assumed, said, found), steps)


@dataclass
class Summit:
    """The highest points of one job's step.

    Attributes:
        requested: of all bytes as asked for.
        role_tops: each role's own, as asked for.
        rounded: of all bytes in blocks of 512.
        at_top: what was live then, by role.
        phase: when that was.
        instant: what was made last.
    """

    requested: int
    role_tops: dict[Role, Any]
    rounded: int
    at_top: dict[Role, Any]
    phase: Phase
    instant: str


def assembled(
    footprint: Footprint, summit: Summit, assumed: Assumed, more: Sequence[str], found: dict[Phase, dict[str, int]] | None
) -> Footprint:
    """The footprint with the peak of the step, and its bounds.

    Args:
        footprint: of what is kept.
        summit: the step's highest points.
        assumed: what it was assumed to run on.
        more: what else was assumed on the way.
        found: what the allocator makes of each phase; None where it was not played through it.

    Raises:
        InputError: 2**63 bytes and more.
    """
    from memcalc.bounds import bounded

    checked_bytes(summit.rounded, "the step")
    told = {**footprint.job, "behaviour": {**footprint.job["behaviour"], **assumed.told()}}
    return bounded(
        replace(
            footprint,
            job=told,
            components=components_of(footprint.components, summit.role_tops),
            peak=Peak(
                requested=summit.requested, rounded=summit.rounded,
                allocated=None if found is None else max(peaks["allocated"] for peaks in found.values()),
                reserved=None if found is None else max(peaks["reserved"] for peaks in found.values()),
                low=summit.rounded, phase=summit.phase, instant=summit.instant, iteration=2,
            ),
            at_peak={COMPONENTS[role]: int(size) for role in ROLES if (size := summit.at_top.get(role, 0))},
            phases=footprint.phases if found is None else phases_through(footprint, found),
            assumptions=(*footprint.assumptions, *assumed.assumptions, *more),
        )
    )  # fmt: skip


def _explained(footprint: Footprint, tape: Sequence[Event]) -> tuple[Held, ...]:
    """What the layout keeps, and of the other components what the played step holds."""
    from memcalc.engines.analytic.explain import PLAYED, REDUCED, held_by_role

    reduces = footprint.job["parallelism"]["zero_backend"] in ("deepspeed", "megatron")
    always = not reduces and any(held.component == COMPONENTS["communication"] for held in footprint.buffers)
    roles = (*PLAYED, *REDUCED) if reduces else PLAYED
    played = {COMPONENTS[role] for role in roles if not (always and role == "communication")}
    kept = [held for held in footprint.buffers if held.component not in played]
    return (*kept, *(held for held in held_by_role(tape, roles) if held.component in played))


def through(steps: Iterable[Event], settings: AllocatorSettings | None = None) -> dict[Phase, dict[str, int]]:
    """What the allocator makes of the second of two iterations, phase by phase."""
    from memcalc.allocator.summits import summits

    return {phase: peaks for (iteration, phase), peaks in summits(steps, settings).items() if iteration == 2}


def components_of(known: Components, tops: dict[Role, Any]) -> Components:
    """Each role's own highest point over the whole step."""
    assert not any(is_array(top) for top in tops.values()), "one job's"
    found = {COMPONENTS[role]: int(tops.get(role, 0)) for role in ROLES if role != "context"}
    return replace(known, **found)


def phases_through(footprint: Footprint, through: dict[Phase, dict[str, int]]) -> dict[str, dict[str, int | None]]:
    """Each phase's highest points, beside what the states alone come to."""
    found: dict[str, dict[str, int | None]] = {}
    for phase, peaks in through.items():
        states = footprint.phases.get(phase, {})
        own: dict[str, int | None] = {f"peak_{name}": peak for name, peak in peaks.items()}
        found[phase] = {**own, **{key: value for key, value in states.items() if key != "peak_allocated"}}
    return found
