"""came-pytorch 0.1.3, the CAME authors' package. Everything but the RMS is kept for ``grad.float()``: never INT8 or FP16."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import factored, scalar, upcast, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer
from memcalc.optimizers.script import Section, in_turn

FACTORS = "+row_mean:rw %r -row_mean +column_mean:cw %c -column_mean +mean:sw %v +row:rw -mean +column:cw"
"""Both means, each added to its state, and the factors whose product stands for the moment (_approx_sq_grad)."""
SQUARED = "+square:nw +update:nw -square"
CLIPPED = "+norm:1w %n +rms:1w -norm +over:1w -rms -over"


def _script(o: Options, form: Implementation) -> list[Section]:
    """CAME.py:91-152: the weights' RMS is a new tensor in each step; a vector binds ``res_approx`` to nothing."""

    def turn(p: Param) -> str:
        cast = "+grad:nw" if upcast(p.grad_dtype) != p.grad_dtype else ""
        update = f"{FACTORS} +update:nw -row -column" if p.ndim >= 2 else "+update:nw"
        residual = "+difference:nw +square:nw -difference +res:nw -square"
        scaled = f"{FACTORS} +res_approx:nw -row -column -update" if p.ndim >= 2 else "+update:nw"
        rms = "+norm:1p %n +rms:1p -norm -rms"
        return f"{cast} {rms} {SQUARED} {update} {CLIPPED} {residual} {scaled} +step:nw -step -grad"

    return [in_turn(turn)]


@optimizer(
    "came-pytorch:CAME",
    cls="came_pytorch.CAME",
    summary="fp32 momentum, variance and residual factored over the last two dimensions; 1-D tensors keep two whole buffers",
    source="came-pytorch 0.1.3 came_pytorch/CAME.py:69-152 (CAME.step); yangluo7/CAME e77c5c0",
    constructor=words("lr eps clip_threshold betas weight_decay"),
    script=_script,
)
def came(p: Param, o: Options) -> Iterator[State]:
    """Momentum, factored variance and residual of ``grad.float()``, and the weights' RMS."""
    dtype = upcast(p.grad_dtype)
    yield whole(p, "exp_avg", "momentum", dtype)
    yield from factored(p, dtype)
    if p.ndim >= 2:
        yield from factored(p, dtype, "exp_avg_res", "residual")
    yield scalar("RMS", "scales", p.dtype)
