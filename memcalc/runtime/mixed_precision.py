"""The textbook's mixed-precision step, for real: low-precision parameters and gradients, an FP32 master copy and moments.

A parameter of ``P`` elements takes 2P bytes in FP16 or BF16, its gradient 2P, and what the optimizer keeps 12P: master,
momentum and variance. A step goes tensor by tensor, so that beyond these only the cast of one gradient and the denominator
of one update exist at a time. source: Micikevicius et al. 2018 (arXiv:1710.03740) sections 3.1-3.2 for the copy and the loss
scale; Kingma and Ba 2015 (arXiv:1412.6980) algorithm 1 and Loshchilov and Hutter 2019 (arXiv:1711.05101) for the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class LossScale:
    """What the loss is multiplied by, so that small gradients survive FP16; a plain number, no tensor.

    It falls by ``backoff`` when a gradient overflows and grows by ``growth`` after ``interval`` steps without one
    (defaults of pytorch 2.13 torch/amp/grad_scaler.py:GradScaler). With ``dynamic=False`` it stays.
    """

    def __init__(
        self, start: float = 2.0**16, *, growth: float = 2.0, backoff: float = 0.5, interval: int = 2000, dynamic: bool = True
    ) -> None:
        self.value = start
        self.growth, self.backoff, self.interval, self.dynamic = growth, backoff, interval, dynamic
        self.good_steps = 0

    @classmethod
    def none(cls) -> LossScale:
        """No scaling: for BF16 and FP32, whose exponents reach as far as a gradient does."""
        return cls(1.0, dynamic=False)

    def update(self, *, overflowed: bool) -> None:
        """Learn from one step."""
        if not self.dynamic:
            return
        if overflowed:
            # no lower than the smallest normal float32, or the scale could reach 0 and never come back
            self.value = max(self.value * self.backoff, torch.finfo(torch.float32).tiny)
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps >= self.interval:
            self.value = min(self.value * self.growth, torch.finfo(torch.float32).max)
            self.good_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where a checkpoint left off."""
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])


def all_finite(gradients: Iterable[torch.Tensor]) -> bool:
    """Whether no gradient holds an infinity or a NaN: the largest magnitude of each is looked at, which keeps both."""
    return all(
        math.isfinite(_number(torch.linalg.vector_norm(gradient, math.inf))) for gradient in gradients if _elements(gradient)
    )


def total_norm(gradients: Iterable[torch.Tensor]) -> float:
    """The 2-norm of all gradients as one vector, accumulated in FP32 whatever their dtype."""
    norms = [_number(torch.linalg.vector_norm(gradient, 2, dtype=torch.float32)) for gradient in gradients]
    return math.hypot(*norms)


def _elements(tensor: torch.Tensor) -> int:
    """Elements this rank holds: a sharded tensor may have none here."""
    return int(getattr(tensor, "to_local", lambda: tensor)().numel())


def _number(value: torch.Tensor) -> float:
    # a sharded tensor's norm is known to no rank alone
    return float(getattr(value, "full_tensor", lambda: value)())


class ScaledStep:
    """What every step under a loss scale shares: scaling the loss, finding overflow, clipping.

    Gradients stay as backward left them, scaled and in low precision. ``factor`` is what the update multiplies each cast
    gradient by: the scale undone, and the clipping with it.
    """

    loss_scale: LossScale
    factor: float | None = None
    """None until the gradients of this step have been looked at; 0.0 is a step to leave out."""
    skipped_steps: int = 0

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss that backward is called on, in FP32 so that scaling it cannot overflow."""
        return loss.float() * self.loss_scale.value

    def prepare(self, gradients: Iterable[torch.Tensor], max_norm: float | None = None) -> float | None:
        """Look at all gradients of the step: undo the scale, clip to ``max_norm``, or leave the step out.

        Returns:
            The unscaled norm before clipping where ``max_norm`` is given and the gradients are finite, else None.
        """
        listed = list(gradients)
        if not _agreed(all_finite(listed)):
            self.factor = 0.0
            return None
        unscale = 1.0 / self.loss_scale.value
        self.factor = unscale
        if max_norm is None:
            return None
        norm = total_norm(listed) * unscale
        # the same small number as torch.nn.utils.clip_grad_norm_ keeps a norm of zero from dividing by
        self.factor = unscale * min(1.0, max_norm / (norm + 1e-6))
        return norm

    def settle(self) -> bool:
        """Close the step: whether it was left out, with the scale adapted and the factor forgotten."""
        skipped = self.factor == 0.0
        self.loss_scale.update(overflowed=skipped)
        self.skipped_steps += int(skipped)
        self.factor = None
        return skipped


def _agreed(finite: bool) -> bool:
    """Whether every rank found its gradients finite: ranks that disagreed would drift apart."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return finite
    on_gpu = "nccl" in torch.distributed.get_backend()
    flag = torch.tensor([float(finite)], device="cuda" if on_gpu else "cpu")
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag.item())


class MixedPrecisionAdam(ScaledStep, torch.optim.Optimizer):
    """Adam (AdamW with ``weight_decay``) on an FP32 master copy of FP16 or BF16 parameters.

    State of one parameter: ``master`` (born with the optimizer), ``exp_avg`` (momentum), ``exp_avg_sq`` (variance), all FP32
    and of its shape, and ``step``, a number on the host, under the names of ``torch.optim.Adam``. A parameter that is FP32
    already is its own master.

    One step::

        optimizer.scale(loss).backward()
        optimizer.clip(max_norm=1.0)  # or nothing
        optimizer.step()
        optimizer.zero_grad()
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        loss_scale: LossScale | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.loss_scale = loss_scale or LossScale()
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad and param.dtype != torch.float32:
                    self.state[param]["master"] = param.detach().to(torch.float32)

    def clip(self, max_norm: float) -> float | None:
        """Clip the gradients of this step to ``max_norm``; their norm before, or None where they overflowed."""
        return self.prepare(self._gradients(), max_norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient, or none of them when a gradient overflowed."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.factor is None:
            self.prepare(self._gradients())
        assert self.factor is not None
        if self.factor:
            for group in self.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        self._update(param, group, self.factor)
        self.settle()
        return loss

    def _update(self, param: torch.Tensor, group: dict[str, Any], factor: float) -> None:
        """The equations for one parameter; every name dies with the call, and its temporaries with it."""
        state = self.state[param]
        master = state.get("master", param)
        if "exp_avg" not in state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(master)
            state["exp_avg_sq"] = torch.zeros_like(master)
        momentum, variance = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        state["step"] += 1
        t = state["step"].item()

        assert param.grad is not None
        # an FP32 gradient is unscaled in place, as GradScaler.unscale_ does; any other is cast first
        gradient = param.grad.to(torch.float32).mul_(factor)  # g, cast and unscaled
        momentum.lerp_(gradient, 1 - beta1)  # m = b1 m + (1 - b1) g
        variance.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)  # v = b2 v + (1 - b2) g²
        denominator = (variance.sqrt() / math.sqrt(1 - beta2**t)).add_(group["eps"])  # sqrt(v / (1 - b2^t)) + eps
        if group["weight_decay"]:
            master.mul_(1 - group["lr"] * group["weight_decay"])
        master.addcdiv_(momentum, denominator, value=-group["lr"] / (1 - beta1**t))  # w -= lr m / (1 - b1^t) / denominator
        if master is not param:
            param.copy_(master)

    def _gradients(self) -> list[torch.Tensor]:
        return [param.grad for group in self.param_groups for param in group["params"] if param.grad is not None]

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments as they are, and the loss scale."""
        return {**super().state_dict(), "loss_scale": self.loss_scale.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a checkpoint without losing precision.

        ``torch.optim.Optimizer.load_state_dict`` casts states to the parameter's dtype, which would round masters and moments
        to FP16 (pytorch 2.13 torch/optim/optimizer.py:_process_value_according_to_param_policy).
        """
        given = {key: value for key, value in state_dict.items() if key != "loss_scale"}
        super().load_state_dict(given)
        numbers = [number for group in given["param_groups"] for number in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for number, param in zip(numbers, params, strict=True):
            for key, value in given["state"].get(number, {}).items():
                device = value.device if key == "step" else param.device
                self.state[param][key] = value.to(device, copy=True)
        if "loss_scale" in state_dict:
            self.loss_scale.load_state_dict(state_dict["loss_scale"])
