"""One optimizer step as a training loop takes it, whatever the precision scheme: backward, clip, update, zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from memcalc.errors import NotModelledError
from memcalc.optimizers.base import Implementation, Optimizer, Options
from memcalc.precision import Scheme
from memcalc.records import dataclass
from memcalc.runtime.masters import MasterWeights
from memcalc.runtime.mixed_precision import LossScale, MixedPrecisionAdam
from memcalc.runtime.optimizers import LEARNING_RATE, Trained, optimizer_class, real_optimizer

FIRST_SCALE = 2.0**10
"""The loss scale a measurement starts with: low enough that the few steps it takes are not left out for overflow."""
ADAMS = frozenset({"torch.optim.Adam", "torch.optim.AdamW"})
ALL_AT_ONCE = frozenset({"muon.SingleDeviceMuon", "muon.SingleDeviceMuonWithAuxAdam"})
"""Classes whose step fails on a parameter without a gradient, so that their masters cannot take turns."""


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
        zero: whether torch's ZeroRedundancyOptimizer deals the states to the ranks.
    """

    scheme: Scheme
    entry: Optimizer
    arguments: Mapping[str, Any]
    options: Options
    implementation: Implementation
    device: str
    zero: bool = False


class Step:
    """What the loop calls, and what a walk looks into.

    Attributes:
        params: the model's own parameters.
        optimizer: what holds the states; a schedule wraps it.
        masters: parallel to ``params``: the tensor the optimizer updates in its place; None where that is the parameter itself.
        keyed_by: parallel to ``params``: the tensor the optimizer's state is filed under.
        scaler: torch's GradScaler, where the scheme has one.
        notes: what a reader of the record should know.
    """

    params: list[torch.Tensor]
    optimizer: Any
    masters: list[torch.Tensor | None]
    keyed_by: list[torch.Tensor]
    scaler: Any = None
    notes: list[str]

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of the loss, scaled where the scheme scales it."""
        raise NotImplementedError

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


def make_step(recipe: Recipe, trained: Sequence[Trained], module: Any) -> Step:
    """The step of a recipe over these parameters.

    Raises:
        NotModelledError: a layout that only its own engine runs.
        MissingPackageError: the optimizer's package is not installed.
    """
    scheme = recipe.scheme
    if scheme.main_gradient is not None or scheme.step == "flat":
        raise NotModelledError("training.precision", scheme.name, "is a layout that torch alone does not run", "use its engine")
    if scheme.master is not None:
        if recipe.entry.frees_gradients:
            rule = f"updates parameters inside backward, and {scheme.name} would update masters after it"
            raise NotModelledError("training.optimizer", recipe.entry.name, rule, "use bf16-pure or fp32")
        return TextbookStep(recipe, trained, module)
    if recipe.entry.frees_gradients:
        return FusedBackwardStep(recipe, trained, module)
    return LibraryStep(recipe, trained, module)


class TextbookStep(Step):
    """FP32 masters of low-precision parameters: Adam as the textbook writes it, any other optimizer on masters."""

    inner: MixedPrecisionAdam | MasterWeights

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        self.params = [each.tensor for each in trained]
        self.notes = []
        scale = LossScale(FIRST_SCALE) if recipe.scheme.parameter == "float16" else LossScale.none()
        if _is_textbook_adam(recipe):
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
        self.inner, self.keyed_by = inner, self.params
        self.masters = [inner.state.get(param, {}).get("master") for param in self.params]

    def _masters(self, recipe: Recipe, trained: Sequence[Trained], module: Any, scale: LossScale) -> None:
        def make(masters: list[torch.Tensor]) -> Any:
            named = [each._replace(tensor=master) for each, master in zip(trained, masters, strict=True)]
            return real_optimizer(recipe.entry, recipe.arguments, recipe.options, named, module)

        in_turn = recipe.implementation == "single"
        if in_turn and recipe.entry.cls in ALL_AT_ONCE:
            in_turn = False
            self.notes.append(f"{recipe.entry.name} needs every gradient at once: all are cast together, not one by one")
        inner = MasterWeights(self.params, make, in_turn=in_turn, loss_scale=scale)
        self.inner, self.optimizer, self.keyed_by = inner, inner.optimizer, inner.masters
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


class LibraryStep(Step):
    """The optimizer's own step on the parameters themselves, under torch's GradScaler where the scheme has one."""

    def __init__(self, recipe: Recipe, trained: Sequence[Trained], module: Any) -> None:
        self.params = self.keyed_by = [each.tensor for each in trained]
        self.masters = [None] * len(self.params)
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


def _plain(recipe: Recipe, trained: Sequence[Trained], module: Any) -> Any:
    return real_optimizer(recipe.entry, recipe.arguments, recipe.options, trained, module)


def _zero_redundancy(recipe: Recipe, params: list[torch.Tensor]) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    told = {"lr": LEARNING_RATE, **recipe.entry.preset, **recipe.arguments}
    return ZeroRedundancyOptimizer(params, optimizer_class(recipe.entry), **told)


def _is_textbook_adam(recipe: Recipe) -> bool:
    """Whether the job's Adam is the textbook's: one tensor at a time, no option beyond rates and decoupled decay."""
    options = recipe.options
    plain = not any(options.get(key) for key in ("amsgrad", "maximize", "capturable", "tensor_betas", "foreach", "fused"))
    decoupled = recipe.entry.cls == "torch.optim.AdamW" or bool(options.get("decoupled_weight_decay"))
    return recipe.entry.cls in ADAMS and recipe.implementation == "single" and plain and (decoupled or not options.weight_decay)


def _adam_arguments(recipe: Recipe) -> dict[str, Any]:
    told: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": recipe.options.weight_decay}
    for key in ("lr", "betas", "eps"):
        if key in recipe.arguments:
            told[key] = tuple(recipe.arguments[key]) if key == "betas" else recipe.arguments[key]
    return told


def make_schedule(kind: str, optimizer: Any, steps: int) -> Callable[[], None]:
    """A learning-rate schedule around the optimizer: linear warm-up, warm-up and cosine, or nothing at all."""
    from torch.optim import lr_scheduler

    optimizer = getattr(optimizer, "optim", optimizer)  # ZeroRedundancyOptimizer copies rates from the one it wraps
    if kind == "none":
        return lambda: None
    warm = lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=max(1, steps // 2))
    if kind == "warmup":
        return warm.step
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    return lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[max(1, steps // 2)]).step
