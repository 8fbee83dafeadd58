"""The model a job trains: of the implementation it names, and with the adapters and the quantised base it asks for."""

from __future__ import annotations

from memcalc.errors import InputError, NotModelledError, either
from memcalc.families.base import load_family
from memcalc.implementations import USUAL, load_implementation
from memcalc.job import Job
from memcalc.models import Model
from memcalc.reached import reached
from memcalc.records import replace


def prepared(model: Model, job: Job) -> Model:
    """The model as the job trains it, its parts marked that no gradient comes to.

    Raises:
        InputError: an unknown implementation, an argument it does not have, or adapters that cannot be.
        NotModelledError: what is not modelled of it.
    """
    asked = _asked(model, job)
    return reached(asked, sees=job.training.image_size is not None) if job.mode == "train" else asked


def _asked(model: Model, job: Job) -> Model:
    """The model with what the job asks for; itself where that is nothing of the kind.

    Raises:
        InputError: an unknown implementation, an argument it does not have, or adapters that cannot be.
        NotModelledError: what is not modelled of it.
    """
    training = job.training
    if training.freeze:
        from memcalc.freezing import with_frozen

        if training.lora is not None:
            raise InputError("training.freeze", training.freeze[0], "is frozen already, as all is but adapters", "leave it out")
        thawed = job.model_copy(update={"training": training.model_copy(update={"freeze": []})})
        return with_frozen(_asked(model, thawed), training.freeze)
    if job.implementation == USUAL:
        return _adapted(_told(model, job), job)
    from memcalc.implementations.base import Asked

    found = load_implementation(job.implementation)
    for key in job.implementation_args:
        if key not in found.arguments:
            raise InputError(f"implementation_args.{key}", job.implementation_args[key], f"is not known to {found.name}",
                             f"use {either(list(found.arguments))}" if found.arguments else "leave it out")  # fmt: skip
    if model.config is None:
        raise NotModelledError("implementation", found.name, "needs a model's config", "name a model")
    if training.lora is not None and not found.adapts:
        raise NotModelledError("training.lora", training.lora, f"is not modelled on {found.name}", "leave it out")
    if training.quantization is not None and not found.adapts:
        raise NotModelledError(
            "training.quantization", training.quantization, f"is not modelled on {found.name}", "leave it out"
        )
    if training.lora is not None:
        from memcalc.adapters import check_values

        check_values(training.lora)
    asked = Asked(job.implementation_args, training.lora, training.quantization, trains=job.mode == "train")
    return replace(found.build(model, asked), implementation=found.name)


def _told(model: Model, job: Job) -> Model:
    """With what the job says of how transformers runs the family."""
    said = job.implementation_args
    if not said:
        return model
    options = load_family(model.family).options if model.config is not None else {}
    if not options:
        raise InputError("implementation_args", dict(said), "are of no use to transformers", "leave them out")
    for key, value in said.items():
        path = f"implementation_args.{key}"
        if key not in options:
            raise InputError(path, value, f"is not known to transformers' {model.family}", f"use {either(list(options))}")
        if value not in options[key]:
            raise InputError(path, value, "is none of its values", f"use {either(list(options[key]))}")
    return replace(model, config=model.config.model_copy(update=said))


def _adapted(model: Model, job: Job) -> Model:
    training = job.training
    if training.lora is None:
        if training.quantization is not None:
            raise InputError("training.quantization", training.quantization, "is of a frozen base, and nothing else trains",
                             "add adapters, as lora: {r: 8}")  # fmt: skip
        return model
    from memcalc.adapters import adapted

    return adapted(model, training.lora, training.quantization)
