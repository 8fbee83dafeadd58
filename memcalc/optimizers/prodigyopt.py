"""prodigyopt 1.1.2: Adam, the distance to the start and the start itself, both thinned by ``slice_p``."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, ceil_div
from memcalc.optimizers._parts import whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer
from memcalc.optimizers.script import Section, in_turn
from memcalc.tensors import itemsize


def _script(o: Options, form: Implementation) -> list[Section]:
    """prodigy.py:150-244: the thinned distance and its norm of each tensor; then updates, each beside the last denominator."""

    def thinned(p: Param) -> Count:
        return ceil_div(p.numel, o.slice_p) * itemsize(p.dtype)

    distance = "+away:thinned +dot:1p -away -dot +magnitude:thinned +sum:1p %n -magnitude -sum"
    return [in_turn(distance, thinned=thinned), in_turn("+denom")]


@optimizer(
    "prodigyopt:Prodigy",
    cls="prodigyopt.Prodigy",
    summary="momentum, variance, the initial weights and a running sum, in the parameter's dtype: twice Adam",
    source="prodigyopt 1.1.2 prodigyopt/prodigy.py:99-244 (Prodigy.step)",
    options={"slice_p": 1, "betas": (0.9, 0.999)},
    constructor=words(
        "lr beta3 eps weight_decay decouple use_bias_correction safeguard_warmup d0 d_coef growth_rate fsdp_in_use"
    ),
    script=_script,
)
def prodigy(p: Param, o: Options) -> Iterator[State]:
    """Four buffers; of a tensor that is all zeros at its first step, ``p0`` keeps one element (prodigy.py:178)."""
    thinned = ceil_div(p.numel, o.slice_p)
    yield State("s", "distance", p.dtype, thinned)
    yield State("p0", "initial", p.dtype, 1 if p.zeros else thinned)
    if o.betas[0] > 0:
        yield whole(p, "exp_avg", "momentum")
    yield whole(p, "exp_avg_sq", "variance")
