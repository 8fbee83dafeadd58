"""Which engine of data parallelism runs the step: what it does around modules, and to the step that was played.

An engine's own module is loaded where it is asked for, which most jobs do not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from memcalc.engines.analytic.step import engine_hooks
from memcalc.engines.analytic.tapes import Around, Played
from memcalc.kernels.reduction import Chip
from memcalc.models import Model
from memcalc.parallelism.base import Layout
from memcalc.plan import Plan
from memcalc.play.around import Hooks


def is_played(plan: Plan) -> bool:
    """Whether the engine's step is played: all but DeepSpeed's stage 0, a wrapper of its own around the optimizer."""
    return plan.backend != "deepspeed" or plan.stage > 0


def gives_up(plan: Plan) -> bool:
    """Whether gradients are copied into buffers that were there before, and let go of as they come."""
    return plan.backend == "megatron"


def hooks_under(plan: Plan, model: Model) -> Callable[[], Hooks] | None:
    """What makes the engine's hooks, anew each time a step is played; None where it leaves forward and backward alone."""
    if plan.backend == "deepspeed" and plan.stage == 3:
        from memcalc.engines.analytic.under_zero3 import Modules

        return Modules
    if plan.backend == "deepspeed":
        from memcalc.engines.analytic.moments import Gradients

        return partial(Gradients, plan.stage == 2)
    if plan.scheme.unscales_to_masters:
        from memcalc.engines.analytic.under_apex import MasterGradients

        return partial(MasterGradients, plan.setting(model))
    return engine_hooks(plan, model)


def ranks_under(
    plan: Plan, model: Model, layout: Layout, around: Around, played: Played, chip: Chip
) -> list[tuple[Around, Played]]:
    """The step of each rank that may be the highest, as the engine has it.

    Raises:
        NotModelledError: what the engine does with this model is not modelled.
        ScalarOnlyError: the engine's step goes tensor by tensor, and ranks or tensors are arrays.
    """
    if plan.backend == "megatron":
        from memcalc.engines.analytic.under_megatron import under_megatron

        return [under_megatron(plan, model, layout, around, played)]
    if plan.scheme.unscales_to_masters:
        from memcalc.engines.analytic.under_apex import under_apex

        return [under_apex(plan, model, layout, around, played)]
    if plan.backend != "deepspeed":
        return [(around, played)]
    if plan.stage == 3 and not plan.scheme.main_gradient:
        from memcalc.engines.analytic.under_zero3 import under_zero3

        return [under_zero3(plan, model, layout, around, played, chip)]
    from memcalc.engines.analytic.under_deepspeed import under_bf16, under_zero

    if plan.scheme.main_gradient:
        return [under_bf16(plan, model, layout, around, played, chip)]
    return under_zero(plan, model, layout, around, played, chip)
