"""transformers 5.23's own optimizer, Adafactor. Its states are float32 for half-precision gradients."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import factor_sides, factored, live, scalar, upcast, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer, variant
from memcalc.tensors import itemsize


def _temporaries(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    wide = itemsize(upcast(p.grad_dtype))
    # grad.float() and p.float(), where those are copies
    upcasts = int(upcast(p.grad_dtype) != p.grad_dtype) + int(upcast(p.dtype) != p.dtype)
    # grad**2 becomes grad**2 + eps beside the previous update, which beta1 makes exp_avg and so no buffer of its own
    yield from live("square", p.numel * wide, 2 + upcasts, 1 if o.beta1 is None else 0)
    # the product of the row and column factors beside grad**2
    yield from live("factors", ((2 + upcasts) * p.numel + factor_sides(p)) * wide)


@optimizer(
    "transformers:Adafactor",
    cls="transformers.optimization.Adafactor",
    summary="the fp32 variance factored over the last two dimensions; beta1 adds an fp32 momentum",
    source="transformers 5.23.0 transformers/optimization.py:Adafactor.step, Adafactor._get_options",
    options={"beta1": None},
    constructor=words("lr eps clip_threshold decay_rate weight_decay scale_parameter relative_step warmup_init"),
    temporaries=_temporaries,
)
def adafactor(p: Param, o: Options) -> Iterator[State]:
    """Row and column means of the variance (whole below two dimensions), a momentum with ``beta1``, the weights' RMS."""
    dtype = upcast(p.grad_dtype)
    if o.beta1 is not None:
        yield whole(p, "exp_avg", "momentum", dtype)
    yield from factored(p, dtype)
    yield scalar("RMS", "scales", upcast(p.dtype))


variant("transformers:Adafactor+beta1", beta1=0.9)
