"""transformers 5.23's own optimizer, Adafactor. Its states are float32 for half-precision gradients."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.optimizers._parts import factored, scalar, upcast, whole, words
from memcalc.optimizers.base import Implementation, Options, Param, State, optimizer, variant
from memcalc.optimizers.came_pytorch import CLIPPED, FACTORS, SQUARED
from memcalc.optimizers.script import Section, in_turn

RATE = "+norm:1f %n +rms:1f -norm -rms +small:1b -small +lr:1f"
"""The weights' RMS, a new tensor in each step, and the rate made of it (_get_lr)."""


def master(p: Param) -> str:
    """``p.float()``, whose name stays bound until the next tensor's turn."""
    return "-p32 +p32:nf" if upcast(p.dtype) != p.dtype else "-p32"


def update(p: Param, *, beta1: bool) -> str:
    """From the squares to the clipped update of one tensor (Adafactor.step); with beta1 that name is exp_avg's at last."""
    product = f"{FACTORS} +update:nw -row -column" if p.ndim >= 2 else "+update:nw"
    return f"{SQUARED} {product} {CLIPPED} {'-update' if beta1 else ''}"


def adafactor_turn(p: Param, *, beta1: bool) -> str:
    """One tensor's turn."""
    cast = "+grad:nw" if upcast(p.grad_dtype) != p.grad_dtype else ""
    return f"{cast} {master(p)} {RATE} {update(p, beta1=beta1)} +step:nw -step -grad"


def _script(o: Options, form: Implementation) -> list[Section]:
    return [in_turn(lambda p: adafactor_turn(p, beta1=o.beta1 is not None))]


@optimizer(
    "transformers:Adafactor",
    cls="transformers.optimization.Adafactor",
    summary="the fp32 variance factored over the last two dimensions; beta1 adds an fp32 momentum",
    source="transformers 5.23.0 transformers/optimization.py:Adafactor.step, Adafactor._get_options",
    options={"beta1": None},
    constructor=words("lr eps clip_threshold decay_rate weight_decay scale_parameter relative_step warmup_init"),
    script=_script,
)
def adafactor(p: Param, o: Options) -> Iterator[State]:
    """Row and column means of the variance (whole below two dimensions), a momentum with ``beta1``, the weights' RMS."""
    dtype = upcast(p.grad_dtype)
    if o.beta1 is not None:
        yield whole(p, "exp_avg", "momentum", dtype)
    yield from factored(p, dtype)
    yield scalar("RMS", "scales", upcast(p.dtype))


variant("transformers:Adafactor+beta1", beta1=0.9)
