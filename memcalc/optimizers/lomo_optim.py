"""lomo-optim 0.1.1: the update runs in a backward hook and drops each gradient, so no full set of gradients ever exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memcalc.optimizers._parts import upcast, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer
from memcalc.optimizers.script import Section, in_turn

_NORM = "+norm:1f %n +root:1f -norm"
"""A norm, over the root of the number of elements."""


def _gradient(p: Param) -> str:
    """Cast to float32, after which nothing else holds it; in float32 it is held under another name."""
    return "+grad:nf -gradient" if upcast(p.grad_dtype) != p.grad_dtype else "=grad:gradient"


def _parameter(p: Param) -> str:
    return "+param:nf" if upcast(p.dtype) != p.dtype else ""


def _lomo(o: Options, implementation: Implementation) -> Iterable[Section]:
    """fuse_update's hook: gradient and parameter cast, the one added to the other, and copied back."""
    yield in_turn(lambda p: f"{_gradient(p)} {_parameter(p)}")


def _adalomo(o: Options, implementation: Implementation) -> Iterable[Section]:
    """adalomo.py:fuse_update's hook: the squared gradient, the update that takes its name, and the parameter's own scale."""
    yield in_turn(
        lambda p: (
            f"{_gradient(p)} +square:nf +update:nf -square {_factored(p)} =update:new {_NORM} +over:1f -root -over "
            f"{_parameter(p)} {_NORM} +rate:1f"
        )
    )


def _factored(p: Param) -> str:
    """The update of a vector from its variance, of a matrix from the means of its rows and columns (_approx_sq_grad)."""
    if p.ndim == 1:
        return "+new:nf"
    means = "+mean:rf %r -mean +mean:cf %c -mean"
    return f"{means} +mean:1f %v +rows:rf -mean +columns:cf +new:nf -rows -columns"


_SHARED: dict[str, Any] = {"frees_gradients": True, "on_arrival": True}


@optimizer(
    "lomo-optim:Lomo",
    cls="lomo_optim.Lomo",
    summary="no state; every gradient is used and freed inside the backward pass",
    source="lomo-optim 0.1.1 lomo_optim/lomo.py:Lomo.fuse_update",
    constructor=words("lr clip_grad_norm clip_grad_value weight_decay loss_scale_args"),
    script=_lomo,
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
    script=_adalomo,
    scales_loss=True,
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
