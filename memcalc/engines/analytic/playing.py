"""What a job is played with: how the machine holds parameters and casts them, and how often it plays a disturbed job anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from memcalc.engines.analytic.static import keeps_gradients
from memcalc.errors import MemcalcError, NotModelledError
from memcalc.families.base import IMAGE, Family
from memcalc.freezing import is_frozen, names_of
from memcalc.implementations import USUAL
from memcalc.kernels.behaviour import Behaviour
from memcalc.models import Model
from memcalc.plan import Plan
from memcalc.play.adapting import counted
from memcalc.play.machine import Machine
from memcalc.play.policy import FLASH_ATTN, Policy, Updates

TRIES = 100
"""How often a job is played anew whose values another thread kept alive, before that is an error."""

Found = TypeVar("Found")


def until_undisturbed(model: Model, once: Callable[[], Found | None]) -> Found:
    """What ``once`` gives when nothing disturbed it: it plays the model anew each time, and gives None where something did.

    Raises:
        MemcalcError: something did every time.
    """
    for _ in range(TRIES):
        if (found := once()) is not None:
            return found
    raise MemcalcError(
        "play", model.name, f"was disturbed {TRIES} times by a thread that holds other threads' frames",
        "switch the profiler off, or play in a process of its own",
    )  # fmt: skip


def held(plan: Plan, model: Model) -> str:
    """The dtype that parameters are held in, and inputs made in."""
    return plan.scheme.parameter or model.dtype or "float32"


def computed(plan: Plan, model: Model) -> tuple[str, str | None]:
    """The dtype of parameters in forward, and what autocast casts to; FSDP2 casts what it gathers, and nothing is left for it.

    source: pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fsdp_api.py:MixedPrecisionPolicy
    """
    dtype = held(plan, model)
    return (plan.scheme.copy or dtype, None) if plan.backend == "fsdp2" else (dtype, plan.scheme.copy)


def policy_of(plan: Plan, model: Model, job: Any, behaviour: Behaviour) -> Policy:
    """How the machine holds parameters, and what it assumes."""
    names = names_of(job.training.freeze)
    frozen = {counted(tensor.name) for tensor in model.parameters if not tensor.trainable}
    frozen -= {counted(tensor.name) for tensor in model.parameters if tensor.trainable}

    def trains(name: str) -> bool:
        return counted(name) not in frozen and not is_frozen(name, names, model.tied)

    return Policy(
        computed(plan, model)[0], keeps=plan.scheme.keeps, trains=trains,
        adapter=model.adapter,
        attention=job.training.attention, checkpointing=job.training.activation_checkpointing, behaviour=behaviour,
        sequences=job.training.packed_sequences if job.training.attention == FLASH_ATTN else None,
        cross_entropy=plan.cross_entropy, asks_inputs=model.implementation == USUAL,
        gradients_kept=keeps_gradients(plan) and not plan.scheme.unscales_to_masters, updates=_updates(plan, model, behaviour),
    )  # fmt: skip


def _updates(plan: Plan, model: Model, behaviour: Behaviour) -> Updates | None:
    """What updates parameters inside backward; None where the optimizer's step does."""
    if not plan.frees_gradients:
        return None
    from memcalc.engines.analytic.in_backward import InBackward

    return InBackward(plan, model, behaviour.chip)


def require_heeded(machine: Machine, training: Any, model: Model, family: Family) -> None:
    """That the family's forward has taken notice of what was asked.

    Raises:
        NotModelledError: it knows nothing of a setting.
    """
    if training.freeze and family.inputs & IMAGE and machine.policy.checkpointing != "none":  # patches' hooks ask for gradients
        raise NotModelledError("training.freeze", training.freeze[0], "is not modelled of a model that sees, under its own "
                               "checkpointing", "use activation_checkpointing every-1, or none")  # fmt: skip
    for key, heeded, way_out in (
        ("activation_checkpointing", machine.layers or not machine.policy.every, "use none or full"),
        ("attention", machine.flashed or training.attention != FLASH_ATTN, "use auto"),
        ("batch", machine.heeded or training.batch == "full", "use full, or engine trace"),
        ("cross_entropy", machine.in_stead or training.cross_entropy == "plain", "use plain"),
    ):
        if not heeded:
            raise NotModelledError(
                f"training.{key}", getattr(training, key), f"is not modelled of {model.architecture}", way_out
            )
