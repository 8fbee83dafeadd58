"""The step of one rank, played: its micro-batches' forward, loss and backward on shapes (``memcalc.play``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from memcalc.arrays import Count
from memcalc.engines.analytic.converted import Converter
from memcalc.engines.analytic.inputs import Reading, read_inputs
from memcalc.engines.analytic.playing import computed, held, policy_of, require_heeded, until_undisturbed
from memcalc.engines.analytic.tapes import Played
from memcalc.errors import NotModelledError
from memcalc.families._forward import Batch
from memcalc.families.base import Family, load_family
from memcalc.freezing import names_of
from memcalc.implementations import USUAL, load_implementation
from memcalc.kernels.behaviour import Behaviour
from memcalc.models import Model
from memcalc.parallelism.engines import hooks_of
from memcalc.plan import Plan
from memcalc.play.around import Hooks
from memcalc.play.graph import Engine, Leaf
from memcalc.play.machine import Machine
from memcalc.play.pointwise import scaled, to
from memcalc.play.values import Value
from memcalc.records import replace
from memcalc.tape.events import Alloc, Buffer, allocs


def play_step(
    job: Any,
    plan: Plan,
    model: Model,
    family: Family,
    behaviour: Behaviour,
    *,
    unrolled: bool = False,
    in_buckets: bool = False,
    hooks: Callable[[], Hooks] | None = None,
) -> Played:
    """Forward and backward of a steady iteration; ``in_buckets`` lets gradients go as soon as a bucket has them.

    ``hooks`` makes the engine of parallelism that does something around modules, anew each time a step is played.

    Raises:
        NotModelledError: a part of the model whose activations are not modelled.
    """
    if family.play is None or model.architecture is None:
        raise NotModelledError(
            "model.model_type", model.family, "has activations that are not modelled yet", "use engine trace"
        )

    each = unrolled

    def once() -> Played | None:
        nonlocal each
        machine = Machine(policy_of(plan, model, job, behaviour))
        machine.tied, machine.unrolled = dict(model.tied), each or bool(machine.policy.every)
        machine.unrolled |= any(name.numbered for name in names_of(job.training.freeze))
        if in_buckets:
            machine.policy.on_gradient = _into_its_bucket
        if hooks is not None:
            machine.policy.hooks = hooks()
            machine.unrolled |= machine.policy.hooks.one_by_one
        machine.path = model.prefix
        reading = read_inputs(job.training, family, model, held(plan, model))
        more = tuple(allocs(buffer, times) for buffer, times in _held(plan, model, reading, machine.policy.dtype))
        steps = plan.accumulation
        several = _several(machine, steps)
        _iterate(machine, plan, family, model, reading, first=True, last=not several)
        if several:
            _again(machine, plan, family, model, reading, steps - 1)
        require_heeded(machine, job.training, model, family)
        if not machine.undisturbed():
            return None
        if machine.uneven and not each:
            each = True
            return once()
        played = _converted(machine, reading)
        return replace(played, before=(*more, *played.before))

    return until_undisturbed(model, once)


def _held(plan: Plan, model: Model, reading: Reading, dtype: str) -> Iterable[tuple[Buffer, Count]]:
    """What another implementation holds besides."""
    if model.implementation == USUAL:
        return ()
    return load_implementation(model.implementation).held(model, reading.batch, dtype, plan.scheme.copy or dtype)


def play_job(mapping: dict[str, Any], *, unrolled: bool = False) -> Played:
    """Forward and backward of a job written as a mapping; for benchmarks and tests."""
    from memcalc.job import read_job
    from memcalc.plan import make_plan
    from memcalc.prepared import prepared
    from memcalc.readers.source import read_model

    job = read_job(mapping)
    model, plan = prepared(read_model(job.model), job), make_plan(job)
    hooks = engine_hooks(plan, model)
    return play_step(job, plan, model, family_of(model), Behaviour(), unrolled=unrolled, hooks=hooks)


def engine_hooks(plan: Plan, model: Model) -> Callable[[], Hooks] | None:
    """What makes the hooks of the plan's data-parallel engine; None for one that leaves forward and backward alone."""
    units = None if model.implementation == USUAL else load_implementation(model.implementation).units
    return hooks_of(plan.setting(model), plan.backend, None if units is None else units(model))


def family_of(model: Model, *, trains: bool = True) -> Family:
    """The family, played as the model's implementation plays it; where nothing trains, as it generates."""
    family = load_family(model.family)
    if model.implementation == USUAL:
        return family
    found = load_implementation(model.implementation)
    if trains or found.generates is None:
        return replace(family, play=found.play)
    return replace(family, play=found.generates.play, caches=True)


def _into_its_bucket(machine: Machine, leaf: Leaf) -> None:
    """The gradient is copied into a bucket that was there before, and is a view of it from then on."""
    assert leaf.gradient is not None
    leaf.gradient.life.role = "temporary"
    leaf.gradient = None


def _several(machine: Machine, steps: Count) -> bool:
    return machine.decide(steps > 1)


def _again(machine: Machine, plan: Plan, family: Family, model: Model, reading: Reading, times: Count) -> None:
    """The micro-batches after the first, which find gradients."""
    if machine.policy.hooks is not None and machine.decide(times > 1):  # an engine may take the last for itself
        _iterate(machine, plan, family, model, reading, first=False, last=False)
    _iterate(machine, plan, family, model, reading, first=False, last=True)


def _iterate(machine: Machine, plan: Plan, family: Family, model: Model, reading: Reading, *, first: bool, last: bool) -> None:
    """One micro-batch (runtime: the loop that is measured and traced), the first of its step, the last, or both."""
    machine.mark("forward")
    machine.layers = 0
    machine.autocast = computed(plan, model)[1]
    if machine.policy.hooks is not None:
        machine.policy.hooks.begin(machine, first=first, last=last)
    assert family.play is not None
    given = _given(machine, reading.batch)
    if model.implementation != USUAL and load_implementation(model.implementation).enters:
        loss, kept = family.play(machine, model.architecture, model.config, model.root, given)
    else:
        loss, kept = machine.call("", family.play, machine, model.architecture, model.config, model.root, given)
    del given
    machine.mark("loss")
    if not (first and last):
        loss = scaled(machine, loss, "div.Tensor")
    del kept
    machine.leave_autocast()
    machine.mark("backward")
    if machine.policy.hooks is not None:
        machine.policy.hooks.begin_backward(machine)
    if (big := _scaled(machine, plan, loss)) is not None:
        Engine(machine).run(big)
    else:
        Engine(machine).run(loss)
    if machine.policy.hooks is not None:
        machine.policy.hooks.left_backward(machine)
    del big
    del loss
    if machine.policy.updates is not None:
        machine.policy.updates.ends(machine)
    machine.held = None


def _scaled(machine: Machine, plan: Plan, loss: Value) -> Value | None:
    """The loss as it is scaled for backward; None where it is not."""
    if plan.scheme.scaler or plan.optimizer.scales_loss:
        return scaled(machine, loss)
    if plan.backend == "megatron":  # core/pipeline_parallel/schedules.py:backward_step
        return scaled(machine, loss) if plan.scheme.parameter == "float16" else None
    if plan.backend == "deepspeed":  # by 1 too, but not by BF16_Optimizer (deepspeed runtime/base_optimizer.py:scale_if_loss)
        return None if plan.scheme.main_gradient else scaled(machine, loss)
    if plan.scheme.step == "textbook" or plan.scheme.unscales_to_masters:  # the latter: apex/amp/handle.py:scale_loss
        return scaled(machine, to(machine, loss, "float32"))
    return None


def _given(machine: Machine, batch: Batch) -> Batch:
    """The batch as an engine of parallelism hands it to the model."""
    hooks = machine.policy.hooks
    return batch if hooks is None else replace(batch, values=hooks.inputs(machine, batch.values))


def _converted(machine: Machine, reading: Reading) -> Played:
    """The machine's tape in the events every reader takes."""
    converter = Converter()
    converter.look(machine.tape)
    events = tuple(converter.events(machine.tape))
    first = None if machine.policy.updates is None else tuple(converter.events(machine.tape, first=True))
    left = [leaf.gradient for leaf in machine.leaves.values() if leaf.gradient is not None]
    if machine.policy.hooks is not None:
        left += machine.policy.hooks.kept()
    gradients = tuple((converter.buffer(one.life), converter.times.get(one.life, 1)) for one in left)
    left.clear()
    for leaf in machine.leaves.values():  # what is still held dies off the tape
        leaf.gradient = None
    return Played(
        tuple(Alloc(buffer) for buffer in reading.buffers),
        events,
        gradients,
        tuple(converter.workspaces.values()),
        tuple(machine.assumed),
        first,
    )
