"""A library's own step on the parameters themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memcalc.errors import NotModelledError
from memcalc.runtime.optimizers import LEARNING_RATE, Trained, optimizer_class, real_optimizer
from memcalc.runtime.step_base import FIRST_SCALE, Recipe, Step


class LibraryStep(Step):
    """The optimizer's own step on the parameters themselves, under torch's GradScaler where the scheme has one."""

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        self.trained = self.keyed = list(trained)
        self.masters = [None] * len(self.trained)
        self.notes = []
        self.optimizer = _zero_redundancy(recipe, self.params) if recipe.zero else _plain(recipe, trained, module)
        if recipe.scheme.scaler:
            self.scaler = torch.amp.GradScaler(recipe.device, init_scale=FIRST_SCALE)

    def backward(self, loss: torch.Tensor) -> None:
        """Of the loss, scaled by GradScaler where there is one."""
        scaled: Any = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()

    def clip(self, max_norm: float) -> float | None:
        """In place, after GradScaler has unscaled in place."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        return float(torch.nn.utils.clip_grad_norm_(self.params, max_norm))

    def update(self) -> bool:
        """The library's own step."""
        if self.scaler is None:
            self.optimizer.step()
            return False
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() < before)

    def loss_scale(self) -> float | None:
        """GradScaler's."""
        return None if self.scaler is None else float(self.scaler.get_scale())


class FusedBackwardStep(LibraryStep):
    """An optimizer that updates each parameter in a backward hook and drops its gradient there and then."""

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        if recipe.entry.cls == "lomo_optim.AdaLomo" and recipe.device != "cuda":
            rule = "moves its states to a GPU in its constructor"
            raise NotModelledError("training.optimizer", recipe.entry.name, rule, "measure on a GPU, or estimate alone")
        super().__init__(recipe, trained, module)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward and update in one."""
        self.optimizer.fused_backward(loss, LEARNING_RATE)

    def clip(self, max_norm: float) -> float | None:
        """Cannot be done."""
        rule = "needs all gradients at once, which this optimizer never has"
        raise NotModelledError("training.max_grad_norm", max_norm, rule, "leave it out")

    def update(self) -> bool:
        """Nothing is left to do."""
        return False


class HookedStep(LibraryStep):
    """An instance of the optimizer for every parameter, stepped and cleared by a hook as soon as its gradient is stored.

    source: torchtune bd2a0fc7 torchtune/training/memory.py:register_optim_in_bwd_hooks

    Attributes:
        optimizer: the instances, in the order of ``trained``.
    """

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        self.trained = self.keyed = list(trained)
        self.masters = [None] * len(self.trained)
        self.notes = []
        self.optimizer = [_plain(recipe, [each], module) for each in self.trained]
        for each, own in zip(self.trained, self.optimizer, strict=True):

            def hook(_: torch.Tensor, own: Any = own) -> None:
                own.step()
                own.zero_grad()

            each.tensor.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def update(self) -> bool:
        """Nothing is left to do."""
        return False


def _plain(recipe: Recipe, trained: Sequence[Trained], module: Any) -> Any:
    return real_optimizer(recipe.entry, recipe.arguments, recipe.options, trained, module)


def _zero_redundancy(recipe: Recipe, params: list[torch.Tensor]) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    told = {"lr": LEARNING_RATE, **recipe.entry.preset, **recipe.arguments}
    return ZeroRedundancyOptimizer(params, optimizer_class(recipe.entry), **told)
