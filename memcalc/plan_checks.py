"""Whether a plan and a model go together: what the optimizer takes, and the settings that the model has a use for."""

from __future__ import annotations

from memcalc.arrays import is_array
from memcalc.errors import NO_VALUE, InputError, either
from memcalc.families.base import load_family
from memcalc.job import Job
from memcalc.models import Model
from memcalc.optimizers.base import Optimizer, Options, Param
from memcalc.parallelism.base import handed
from memcalc.plan import Plan

INPUTS = ("sequence_length", "source_length", "image_size")
"""Settings that size what a model reads."""


def check_parameters(plan: Plan, model: Model) -> None:
    """Every trainable parameter is one the optimizer takes.

    Raises:
        InputError: it refuses some, as torch:Muon does all but matrices.
    """
    if not model.parameters:
        raise InputError("model", model.name, "has no parameters", "name another")
    check_accumulation(plan)
    if plan.cross_entropy != "plain":
        from memcalc.families._head_losses import check_head

        check_head(plan.cross_entropy, model)
    setting = plan.setting(model)
    refused = [tensor.name for tensor in setting.trainable if not plan.optimizer.accepts(handed(setting, tensor))]
    if refused and plan.backend in ("torch", "fsdp2"):
        raise InputError(
            "training.optimizer", plan.optimizer.name, f"takes only {plan.optimizer.needs}, not {either(refused[:3])}",
            "use one that takes every parameter",
        )  # fmt: skip
    if not model.shapes_known and reads_shapes(plan.optimizer, plan.options):
        raise InputError(
            "training.optimizer", plan.optimizer.name, "keeps states that depend on tensors' shapes, which a bare size lacks",
            "name a model, or another optimizer",
        )  # fmt: skip
    if not setting.trainable:
        raise InputError("model", NO_VALUE, "has no trainable parameter", "unfreeze one")


def check_settings(job: Job, model: Model) -> list[str]:
    """Warnings on settings that change nothing; an error on those the model has no use for.

    Raises:
        InputError: an image size for a language model, an attention kernel for a model without attention.
    """
    training = job.training
    given = {key: value for key in INPUTS if (value := getattr(training, key)) is not None}
    if model.root is None:
        return [f"{key} changes nothing: of {model.name} only the tensors are known" for key in given]
    family = load_family(model.family)
    for key, value in given.items():
        if key not in family.inputs:
            raise InputError(
                f"training.{key}", value, f"does not apply to {model.family}",
                f"it takes {either([name for name in INPUTS if name in family.inputs])}; leave it out",
            )  # fmt: skip
    if training.attention != "auto" and not family.attends:
        raise InputError(
            "training.attention", training.attention, f"does not apply to {model.family}", "it has none; leave it out"
        )
    return []


def reads_shapes(optimizer: Optimizer, options: Options) -> bool:
    """Whether a matrix's states are other than those of a vector with as many elements, as when a moment is factored."""
    flat, square = (
        sum(s.nbytes * s.count for s in optimizer.states(Param(shape), options)) for shape in ((2**24,), (2**12, 2**12))
    )
    return bool(flat != square)


def check_accumulation(plan: Plan) -> None:
    """Gradients cannot be accumulated where each is used as it comes.

    Raises:
        InputError: more than one micro-batch to a step.
    """
    if not plan.in_backward and not plan.optimizer.on_arrival:
        return
    more = plan.accumulation > 1
    if more.any() if is_array(more) else more:  # type: ignore[union-attr]
        most = plan.accumulation.max() if is_array(plan.accumulation) else plan.accumulation  # type: ignore[union-attr]
        raise InputError(
            "training.gradient_accumulation_steps", int(most), "keeps gradients, and each is dropped inside backward", "use 1"
        )
