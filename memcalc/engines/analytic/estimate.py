"""From a job and its model to a footprint."""

from __future__ import annotations

from collections.abc import Iterable

from memcalc.arrays import Count
from memcalc.engines.analytic.needs import step_needs
from memcalc.engines.analytic.static import MODELLED, Account, accounts, filled, gradients_held, keeps_gradients, state_holdings
from memcalc.engines.analytic.update import own_masters
from memcalc.engines.analytic.whole import Whole
from memcalc.footprint import Components, Footprint, Held, ModelSummary, Peak, Rank, States
from memcalc.inference import trains
from memcalc.job import Job
from memcalc.models import Model
from memcalc.optimizers.step import measured
from memcalc.parallelism.base import Holding
from memcalc.plan import Plan, make_plan, understood
from memcalc.plan_checks import check_parameters, check_settings
from memcalc.positions import check_positions
from memcalc.prepared import prepared
from memcalc.tape.events import COMPONENTS, ROLES
from memcalc.textbook import card
from memcalc.units import checked_bytes

ONE_AT_A_TIME = "backward, one at a time"
"""How long a gradient lives that the optimizer uses and frees inside backward."""


def estimate_job(job: Job, model: Model) -> Footprint:
    """The footprint of one job; see :func:`estimate_whole`."""
    return estimate_whole(job, model).footprint


def estimate_whole(job: Job, model: Model, *, replayed: bool = True, explained: bool = False) -> Whole:
    """The footprint of one job, and the tape it was read from where the step was played.

    Args:
        job: what is asked.
        model: its model.
        replayed: whether the step is played through the allocator too, for ``allocated`` and ``reserved``.
        explained: whether every buffer of the played step is listed as well.

    Raises:
        InputError: names or values that cannot be, or a total of 2**63 bytes and more.
        NotModelledError: a parallelism memcalc does not model yet.
    """
    many = _is_one_of_many(job) and not explained
    if many:
        from memcalc.engines.analytic.structures import KNOWN

        if (known := KNOWN.answer(job, model, replayed=replayed)) is not None:
            return known
    read, model = model, prepared(model, job)
    if not trains(job):
        from memcalc.engines.analytic.evaluated import estimate_forward

        return estimate_forward(job, model, replayed=replayed, explained=explained)
    plan = make_plan(job)
    check_positions(job, read)
    check_parameters(plan, model)
    ignored = check_settings(job, model)
    ranks = int(plan.shards * plan.replicas)
    counted = accounts(plan, model, ranks)
    fullest = counted[0]
    components = component_bytes(fullest)
    checked_bytes(number(fullest.by_bound.stretch.top), "states")
    parameters = number(model.num_parameters)
    footprint = Footprint(
        model=summary_of(model),
        job=understood(job, plan),
        engine="analytic",
        components=Components(**components),
        optimizer_states={part: number(size) for part, size in fullest.parts.items()},
        peak=Peak(low=number(fullest.by_rounded.stretch.top)),
        states=states_of(fullest),
        phases=phases_of(fullest),
        host=host_bytes(fullest),
        ranks=tuple(
            Rank(one.layout.index, number(one.layout.multiplicity), None, number(one.by_rounded.stretch.top)) for one in counted
        ),
        textbook=card(
            plan.optimizer.name, parameters, number(model.num_trainable_parameters), plan.stage, number(plan.shards)
        ),
        assumptions=(*model.assumptions, *plan.assumptions, *fullest.layout.notes, *paged(fullest)),
        warnings=(*ignored, *warnings_of(job, plan, model)),
        buffers=tuple(buffers_of(plan, fullest, model)),
        bytes_per_parameter={
            name: None if size is None else round(size / parameters, 6) for name, size in components.items()
        },
    )  # fmt: skip
    if job.scope == "states":
        return Whole(footprint)
    from memcalc.engines.analytic.peak import whole_step

    whole = whole_step(job, plan, model, fullest, footprint, replayed=replayed, explained=explained)
    if many and whole.tape is not None:
        KNOWN.played(job, read, model, plan, fullest, footprint)
    return whole


class _Count:
    """Steps that this process has been asked for."""

    steps = 0


def _is_one_of_many(job: Job) -> bool:
    """Whether a step is asked for by a process that has asked before: a command asks once, and loads no more than it needs."""
    if job.scope == "states" or not trains(job):
        return False
    _Count.steps += 1
    return _Count.steps > 1


def summary_of(model: Model) -> ModelSummary:
    """The model as it was understood."""
    return ModelSummary(
        name=model.name, family=model.family, architecture=model.architecture, num_parameters=number(model.num_parameters),
        num_trainable_parameters=number(model.num_trainable_parameters),
        num_tensors=number(sum((tensor.count for tensor in model.parameters), 0)),
    )  # fmt: skip


def number(value: Count) -> int:
    """A scalar count as a plain int."""
    return int(value)


def component_bytes(account: Account) -> dict[str, int | None]:
    """Each modelled role's own maximum in requested bytes; null for the rest, and for roles the layout knows in part."""
    tops = account.by_requested.stretch.role_top
    known = [role for role in MODELLED if role not in account.layout.partial]
    return {COMPONENTS[role]: number(tops.get(role, 0)) if role in known else None for role in ROLES}


def states_of(account: Account) -> States:
    """The highest instant of what is kept."""
    rounded = account.by_rounded.stretch
    phase, instant = account.by_rounded.instant()
    return States(
        requested=number(account.by_requested.stretch.top),
        rounded=number(rounded.top),
        bound=number(account.by_bound.stretch.top),
        phase=phase,
        instant=instant,
        at_peak={COMPONENTS[role]: number(rounded.at_top[role]) for role in ROLES if number(rounded.at_top.get(role, 0))},
    )


def phases_of(account: Account) -> dict[str, dict[str, int | None]]:
    """Each phase's highest point: of the states alone, until the step is modelled."""
    tops = account.by_requested.stretch.phase_top
    rounded = account.by_rounded.stretch.phase_top
    return {
        phase: {"peak_allocated": None, "states_requested": number(tops[phase]), "states_rounded": number(rounded[phase])}
        for phase in tops
        if phase not in ("init", "zero_grad")
    }


def host_bytes(account: Account) -> dict[str, int]:
    """What lives in CPU memory, and what pages between both."""
    host = {"optimizer_states": number(account.host)}
    if managed := number(account.managed):
        host["managed_optimizer_states"] = managed
    return host


def buffers_of(plan: Plan, account: Account, model: Model) -> Iterable[Held]:
    """Every buffer of a layout, so that each component can be added up by hand."""
    layout = account.layout
    kept = "backward to " + ("the step" if layout.early else "zero_grad")
    gradients, always = gradients_held(plan, layout), keeps_gradients(plan)
    lives = {
        "always": (*layout.resident, *(gradients if always else ())),
        "optimizer, always": tuple(held for _, held in state_holdings(plan, layout.params)),
        "forward to backward": layout.forward,
        "backward": layout.backward,
        "the step to zero_grad": () if always else tuple(filled(plan, layout)),
        ONE_AT_A_TIME if plan.frees_gradients else kept: () if always else gradients,
        "start of the step": layout.cast,
        "the step": () if own_masters(plan) else layout.step,
        "the step, at its highest": tuple(Holding(buffer, times) for buffer, times in step_needs(plan, layout, model)),
    }
    for life, holdings in lives.items():
        for held in holdings:
            buffer, times = held.buffer, number(held.times)
            if times and number(buffer.requested):
                yield Held(COMPONENTS[buffer.role], buffer.site, number(buffer.requested), times, buffer.place, life)


def paged(account: Account) -> tuple[str, ...]:
    """What is assumed of states in managed memory, where there are any."""
    return (PAGED,) if number(account.managed) else ()


PAGED = (
    "optimizer states in managed memory page: what is used lies on the device while there is room, and gives way when there is "
    "none; they are in no figure of the device's, and what the process shows may be larger by them"
)
"""CUDA's unified memory under bitsandbytes' paged classes (0.50.2 optim/optimizer.py:get_state_buffer, prefetch_state)."""


def warnings_of(job: Job, plan: Plan, model: Model) -> list[str]:
    """Settings that change nothing yet, and needs nobody has measured."""
    said = []
    if not model.shapes_known:
        said.append("what the step needs for its largest tensor is not in the states: a bare size has no tensors")
    if not measured(plan.optimizer):
        said.append(f"what the step of {plan.optimizer.name} needs for a moment has not been measured; it is not in the states")
    return said
