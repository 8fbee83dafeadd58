"""came-pytorch 0.1.3, the CAME authors' package. Everything but the RMS is kept for ``grad.float()``: never INT8 or FP16."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import factor_sides, factored, live, scalar, upcast, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.tensors import itemsize


def _temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    wide = upcast(p.grad_dtype)
    nbytes = p.numel * itemsize(wide)
    upcast_copy = int(wide != p.grad_dtype)  # grad.float() stays bound all through the tensor's turn
    # update - exp_avg, its square and the sum with eps, beside the previous res (and, factored, its scaled momentum)
    yield from live("residual", nbytes, 3 + upcast_copy, 2 if p.ndim >= 2 else 1)
    # the product of the residual's row and column factors beside update, res and the previous tensor's product
    yield Temporary("update", nbytes * (3 + upcast_copy) + factor_sides(p) * itemsize(wide), "max", moment="factors")
    yield Temporary("update", nbytes, "previous", count=int(p.ndim >= 2), moment="factors")


@optimizer(
    "came-pytorch:CAME",
    cls="came_pytorch.CAME",
    summary="fp32 momentum, variance and residual factored over the last two dimensions; 1-D tensors keep two whole buffers",
    source="came-pytorch 0.1.3 came_pytorch/CAME.py:69-152 (CAME.step); yangluo7/CAME e77c5c0",
    constructor=words("lr eps clip_threshold betas weight_decay"),
    temporaries=_temporaries,
)
def came(p: Param, o: Options) -> Iterator[State]:
    """Momentum, factored variance and residual of ``grad.float()``, and the weights' RMS."""
    dtype = upcast(p.grad_dtype)
    yield whole(p, "exp_avg", "momentum", dtype)
    yield from factored(p, dtype)
    if p.ndim >= 2:
        yield from factored(p, dtype, "exp_avg_res", "residual")
    yield scalar("RMS", "scales", p.dtype)
