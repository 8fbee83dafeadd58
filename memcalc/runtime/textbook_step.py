"""The textbook's step: FP32 masters of low-precision parameters, whichever optimizer updates them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memcalc.errors import NotModelledError
from memcalc.optimizers.textbook import ALL_AT_ONCE, is_textbook_adam, told_to_take_one
from memcalc.runtime.masters import MasterWeights
from memcalc.runtime.mixed_precision import LossScale, MixedPrecisionAdam
from memcalc.runtime.optimizers import LEARNING_RATE, Trained, real_optimizer
from memcalc.runtime.step_base import FIRST_SCALE, Recipe, Step


class TextbookStep(Step):
    """FP32 masters of low-precision parameters: Adam as the textbook writes it, any other optimizer on masters."""

    inner: MixedPrecisionAdam | MasterWeights

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        self.trained = list(trained)
        self.notes = []
        scale = LossScale(FIRST_SCALE) if recipe.scheme.parameter == "float16" else LossScale.none()
        if is_textbook_adam(recipe.entry, recipe.options, recipe.implementation):
            self._adam(recipe, scale)
        elif recipe.zero:
            rule = "is dealt to ranks here for Adam and AdamW alone where masters are kept"
            raise NotModelledError("training.optimizer", recipe.entry.name, rule, "use precision fp32, or another backend")
        else:
            self._masters(recipe, trained, module, scale)

    def _adam(self, recipe: Recipe, scale: LossScale) -> None:
        told = _adam_arguments(recipe)
        inner: MixedPrecisionAdam
        if recipe.zero:
            from torch.distributed.optim import ZeroRedundancyOptimizer

            self.optimizer = ZeroRedundancyOptimizer(self.params, MixedPrecisionAdam, **told)
            inner = self.optimizer.optim
            inner.loss_scale = scale
        else:
            self.optimizer = inner = MixedPrecisionAdam(self.params, **told, loss_scale=scale)
        self.inner, self.keyed = inner, self.trained
        self.masters = [inner.state.get(param, {}).get("master") for param in self.params]

    def _masters(self, recipe: Recipe, trained: Sequence[Trained], module: Any, scale: LossScale) -> None:
        def make(masters: list[torch.Tensor]) -> Any:
            named = [each._replace(tensor=master) for each, master in zip(trained, masters, strict=True)]
            # in turn means one tensor at a time, also where a class would take lists of one on a GPU
            alone = {"foreach": False} if in_turn and told_to_take_one(recipe.entry) else {}
            return real_optimizer(recipe.entry, {**alone, **recipe.arguments}, recipe.options, named, module)

        in_turn = recipe.implementation == "single"
        if in_turn and recipe.entry.cls in ALL_AT_ONCE:
            in_turn = False
            self.notes.append(f"{recipe.entry.name} needs every gradient at once: all are cast together, not one by one")
        inner = MasterWeights(self.params, make, in_turn=in_turn, loss_scale=scale)
        self.inner, self.optimizer = inner, inner.optimizer
        self.keyed = [each._replace(tensor=master) for each, master in zip(trained, inner.masters, strict=True)]
        self.masters = [None if master is param else master for param, master in zip(self.params, inner.masters, strict=True)]

    def backward(self, loss: torch.Tensor) -> None:
        """Of the scaled loss."""
        self.inner.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, max_norm: float) -> float | None:
        """By the factor each gradient is multiplied with once it is cast."""
        return self.inner.prepare(self._gradients(), max_norm)

    def update(self) -> bool:
        """Masters, moments and working copies, tensor by tensor."""
        before = self.inner.skipped_steps
        if self.inner.factor is None:
            # over all parameters: under ZeRO the optimizer of a rank knows its own alone
            self.inner.prepare(self._gradients())
        (self.inner if isinstance(self.inner, MasterWeights) else self.optimizer).step()
        return self.inner.skipped_steps > before

    def loss_scale(self) -> float | None:
        """A plain number."""
        return self.inner.loss_scale.value if self.inner.loss_scale.dynamic else None

    def _gradients(self) -> list[torch.Tensor]:
        return [param.grad for param in self.params if param.grad is not None]


def _adam_arguments(recipe: Recipe) -> dict[str, Any]:
    told: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": recipe.options.weight_decay}
    for key in ("lr", "betas", "eps"):
        if key in recipe.arguments:
            told[key] = tuple(recipe.arguments[key]) if key == "betas" else recipe.arguments[key]
    return told
