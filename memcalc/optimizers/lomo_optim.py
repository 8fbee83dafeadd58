"""lomo-optim 0.1.1: the update runs in a backward hook and drops each gradient, so no full set of gradients ever exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcalc.optimizers._parts import factor_sides, upcast, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.tensors import ITEMSIZE

_WIDE = ITEMSIZE["float32"]


def _upcast_copies(p: Param) -> int:
    """How many float32 copies a hook makes of half-precision tensors: the gradient's and the parameter's."""
    return (upcast(p.grad_dtype) != p.grad_dtype) + (upcast(p.dtype) != p.dtype)


def _lomo(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    yield Temporary("float32 copies", _upcast_copies(p) * p.numel * _WIDE, "max")


def _adalomo(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    grad = (upcast(p.grad_dtype) != p.grad_dtype) * p.numel
    # grad**2 (+ eps) beside the product of the row and column factors; p.float() comes when one of the two is gone
    yield Temporary("update", (2 * p.numel + grad + factor_sides(p)) * _WIDE, "max")


_SHARED: dict[str, Any] = {"frees_gradients": True}


@optimizer(
    "lomo-optim:Lomo",
    cls="lomo_optim.Lomo",
    summary="no state; every gradient is used and freed inside the backward pass",
    source="lomo-optim 0.1.1 lomo_optim/lomo.py:Lomo.fuse_update",
    constructor=words("lr clip_grad_norm clip_grad_value weight_decay loss_scale_args"),
    temporaries=_lomo,
    **_SHARED,
)
def lomo(p: Param, o: Options) -> Iterator[State]:
    """Nothing."""
    yield from ()


@optimizer(
    "lomo-optim:AdaLomo",
    cls="lomo_optim.AdaLomo",
    summary="an fp32 variance factored by row and column, for frozen tensors too; gradients freed inside the backward pass",
    source="lomo-optim 0.1.1 lomo_optim/adalomo.py:75-98 (AdaLomo.__init__), AdaLomo.fuse_update",
    constructor=words("lr loss_scale eps clip_threshold decay_rate clip_grad_norm clip_grad_value weight_decay"),
    temporaries=_adalomo,
    born="init",
    needs="one or two dimensions",
    accepts=lambda p: p.ndim in (1, 2),
    **_SHARED,
)
def adalomo(p: Param, o: Options) -> Iterator[State]:
    """Kept in dicts by parameter name and moved with a hard-coded ``.cuda()``."""
    if p.ndim == 1:
        yield State("exp_avg_sq", "variance", "float32", p.shape[0])
    else:
        yield State("exp_avg_sq_row", "variance", "float32", p.shape[0])
        yield State("exp_avg_sq_col", "variance", "float32", p.shape[1])
