"""Which step a job takes, and the schedule around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from memcalc.errors import MemcalcError, NotModelledError
from memcalc.optimizers.base import Optimizer
from memcalc.runtime.library_step import FusedBackwardStep, HookedStep, LibraryStep
from memcalc.runtime.optimizers import Trained, optimizer_class
from memcalc.runtime.step_base import Recipe, Step
from memcalc.runtime.textbook_step import TextbookStep


def make_step(recipe: Recipe, trained: Sequence[Trained], module: Any) -> Step:
    """The step of a recipe over these parameters.

    Raises:
        NotModelledError: a layout that only its own engine runs.
        MissingPackageError: the optimizer's package is not installed.
    """
    scheme = recipe.scheme
    if recipe.backend == "deepspeed":
        from memcalc.runtime.deepspeed_step import DeepSpeedStep

        return DeepSpeedStep(recipe, trained, module)
    if scheme.main_gradient is not None or scheme.step == "flat":
        raise NotModelledError("training.precision", scheme.name, "is a layout that torch alone does not run", "use its engine")
    if scheme.master is not None:
        if recipe.entry.frees_gradients:
            rule = f"updates parameters inside backward, and precision {scheme.name} keeps masters, which are updated after it"
            raise NotModelledError("training.optimizer", recipe.entry.name, rule, "use bf16-pure or fp32")
        return TextbookStep(recipe, trained, module)
    if recipe.entry.frees_gradients:
        return FusedBackwardStep(recipe, trained, module)
    return (HookedStep if recipe.in_backward else LibraryStep)(recipe, trained, module)


def import_early(entry: Optimizer, *, lora: bool) -> None:
    """Load the packages a step needs, so that tensors they make for themselves are in no phase of it.

    What cannot be loaded is said where it is used.
    """
    with suppress(MemcalcError):
        optimizer_class(entry)
    if lora:
        with suppress(Exception):
            import_module("peft")


def make_schedule(kind: str, optimizer: Any, steps: int) -> Callable[[], None]:
    """A learning-rate schedule around the optimizer: linear warm-up, warm-up and cosine, or nothing at all."""
    if isinstance(optimizer, list):  # one for every parameter
        each = [make_schedule(kind, one, steps) for one in optimizer]

        def together() -> None:
            for one in each:
                one()

        return together
    from torch.optim import lr_scheduler

    optimizer = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer copies rates from the one it wraps
    if kind == "none":
        return lambda: None
    warm = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=max(1, steps // 2))
    if kind == "warmup":
        return warm.step
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    return lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[max(1, steps // 2)]).step
