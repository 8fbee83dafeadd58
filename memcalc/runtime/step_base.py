"""What every optimizer step shares, whatever the precision scheme: backward, clip, update, zero, and what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, NamedTuple

import torch

from memcalc.optimizers.base import Implementation, Optimizer, Options
from memcalc.precision import Scheme
from memcalc.records import dataclass
from memcalc.runtime.optimizers import Trained

FIRST_SCALE = 2.0**10
"""The loss scale a measurement starts with: low enough that the few steps it takes are not left out for overflow."""


class Holding(NamedTuple):
    """A tensor to be counted.

    Attributes:
        component: a footprint's.
        name: as the analytic engine spells it.
        tensor: itself.
        owner: the parameter it belongs to.
        flat: what its storage is called where the tensor is a piece of a larger one.
    """

    component: str
    name: str
    tensor: torch.Tensor
    owner: str | None = None
    flat: str = ""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a step is to be taken.

    Attributes:
        scheme: the precision scheme.
        entry: the registry's optimizer.
        arguments: its options as the job gives them.
        options: the same with defaults filled in.
        implementation: the form of its step.
        device: ``cpu`` or ``cuda``.
        backend: the data-parallel engine.
        in_backward: whether every parameter has an instance of its own, stepped as its gradient comes.
        zero: whether torch's ZeroRedundancyOptimizer deals the states to the ranks.
        stage: ZeRO stage, for an engine of its own.
        engine_args: that engine's options.
        batch: samples of a micro-batch, which such an engine wants to know.
        accumulation: micro-batches to a step.
        max_norm: what gradients are clipped to.
    """

    scheme: Scheme
    entry: Optimizer
    arguments: Mapping[str, Any]
    options: Options
    implementation: Implementation
    device: str
    backend: str = "torch"
    zero: bool = False
    in_backward: bool = False
    stage: int = 0
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    accumulation: int = 1
    max_norm: float | None = None


class Step:
    """What the loop calls, and what a walk looks into.

    Attributes:
        trained: the model's own parameters that receive a gradient.
        optimizer: what holds the states; a schedule wraps it.
        masters: parallel to ``trained``: the tensor updated in its place; None where that is the parameter itself.
        keyed: what the optimizer's state is filed under, by the name of the parameter it stands for.
        scaler: torch's GradScaler, where the scheme has one.
        module: the module whose forward is called, where the step comes with one of its own.
        notes: what a reader of the record should know.
    """

    trained: list[Trained]
    optimizer: Any
    masters: list[torch.Tensor | None]
    keyed: list[Trained]
    scaler: Any = None
    module: Any = None
    notes: list[str]

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss, scaled where the scheme scales it."""
        raise NotImplementedError

    def next_micro_batch(self) -> None:
        """Another micro-batch follows before the step."""

    def clip(self, max_norm: float) -> float | None:
        """Clip the gradients; their norm before, unscaled, or None where they overflowed."""
        raise NotImplementedError

    def update(self) -> bool:
        """The optimizer's step; whether it was left out for overflow."""
        raise NotImplementedError

    def loss_scale(self) -> float | None:
        """The loss scale now; None without one."""
        return None

    def zero_grad(self, *, set_to_none: bool) -> None:
        """As ``torch.optim.Optimizer.zero_grad``, for working parameters that the optimizer may not know."""
        for param in self.params:
            if param.grad is None:
                continue
            if set_to_none:
                param.grad = None
            else:
                param.grad.detach_().zero_()

    @property
    def params(self) -> list[torch.Tensor]:
        """The model's parameters that receive a gradient."""
        return [each.tensor for each in self.trained]

    def kept(self, module: Any) -> Iterator[Holding]:
        """What is there from the start: parameters, buffers, masters."""
        for name, param in module.named_parameters(remove_duplicate=False):
            yield Holding("parameters", name, param, name)
        for name, buffer in module.named_buffers(remove_duplicate=False):
            yield Holding("buffers", name, buffer)
        for each, master in zip(self.trained, self.masters, strict=True):
            if master is not None:
                yield Holding("master_parameters", f"{each.name} (master)", master, each.name)

    def gradients(self) -> Iterator[Holding]:
        """What backward has left."""
        for each in self.trained:
            if each.tensor.grad is not None:
                yield Holding("gradients", f"{each.name}.grad", each.tensor.grad, each.name, "reduced gradients")
