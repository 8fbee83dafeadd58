"""Any optimizer on an FP32 master copy: the textbook's step around a library's own update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from memcalc.runtime.mixed_precision import LossScale, ScaledStep


class MasterWeights(ScaledStep):
    """FP16 or BF16 parameters, their FP32 masters, and a real optimizer that updates the masters.

    Taken in turn, each parameter's gradient is cast for its own update alone: the optimizer's step is called with one
    gradient there and passes over the rest, so that its own temporaries are of one tensor too. Together (the foreach and
    fused steps), every gradient is cast at once.
    """

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        make: Callable[[list[torch.Tensor]], Any],
        *,
        in_turn: bool,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.params = list(params)
        self.masters = [_master(param) for param in self.params]
        self.optimizer = make(self.masters)
        self.in_turn = in_turn
        self.loss_scale = loss_scale or LossScale()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's, which a schedule changes."""
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups

    def clip(self, max_norm: float) -> float | None:
        """Clip the gradients of this step to ``max_norm``; their norm before, or None where they overflowed."""
        return self.prepare(self._gradients(), max_norm)

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, or none of them when a gradient overflowed."""
        if self.factor is None:
            self.prepare(self._gradients())
        if self.factor:
            pairs = list(zip(self.params, self.masters, strict=True))
            for together in [[pair] for pair in pairs] if self.in_turn else [pairs]:
                self._update(together, self.factor)
        self.settle()

    def _update(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], factor: float) -> None:
        """Hand the optimizer these gradients and no others."""
        pairs = [(param, master) for param, master in pairs if param.grad is not None]
        if not pairs:
            return
        for param, master in pairs:
            assert param.grad is not None
            master.grad = param.grad.to(torch.float32).mul_(factor)
        mine = {id(master) for _, master in pairs}
        # an FP32 parameter is its own master, and its gradient is there whoever's turn it is
        others = [(master, master.grad) for master in self.masters if id(master) not in mine and master.grad is not None]
        for master, _ in others:
            master.grad = None
        with torch.enable_grad():
            self.optimizer.step()
        for master, gradient in others:
            master.grad = gradient
        for param, master in zip(self.params, self.masters, strict=True):
            if master is not param:
                master.grad = None  # and those that the optimizer has made where none came
        for param, master in pairs:
            if master is not param:
                param.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop or zero the working parameters' gradients."""
        for param in self.params:
            if param.grad is None:
                continue
            if set_to_none:
                param.grad = None
            else:
                param.grad.detach_().zero_()

    def _gradients(self) -> list[torch.Tensor]:
        return [param.grad for param in self.params if param.grad is not None]


def _master(param: torch.Tensor) -> torch.Tensor:
    """An FP32 leaf of its own; a parameter that is FP32 already is its own master."""
    if param.dtype == torch.float32:
        return param
    return torch.nn.Parameter(param.detach().to(torch.float32))
