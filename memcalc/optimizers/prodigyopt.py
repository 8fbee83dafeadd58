"""prodigyopt 1.1.2: Adam, the distance to the start and the start itself, both thinned by ``slice_p``."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import ceil_div
from memcalc.optimizers._parts import copies, whole, words
from memcalc.optimizers.base import Options, Param, State, optimizer


@optimizer(
    "prodigyopt:Prodigy",
    cls="prodigyopt.Prodigy",
    summary="momentum, variance, the initial weights and a running sum, in the parameter's dtype: twice Adam",
    source="prodigyopt 1.1.2 prodigyopt/prodigy.py:99-244 (Prodigy.step)",
    options={"slice_p": 1, "betas": (0.9, 0.999)},
    constructor=words(
        "lr beta3 eps weight_decay decouple use_bias_correction safeguard_warmup d0 d_coef growth_rate fsdp_in_use"
    ),
    temporaries=copies(single=((1, 1),)),  # the previous tensor's denominator outlives it in the second loop
)
def prodigy(p: Param, o: Options) -> Iterator[State]:
    """Four buffers; of a tensor that is all zeros at its first step, ``p0`` keeps one element (prodigy.py:178)."""
    thinned = ceil_div(p.numel, o.slice_p)
    yield State("s", "distance", p.dtype, thinned)
    yield State("p0", "initial", p.dtype, 1 if p.zeros else thinned)
    if o.betas[0] > 0:
        yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
