"""What a torch.optim 2.13 step holds for a moment, class by class, read from the step's own operators.

A tensor lives until its Python name is rebound, so the one-by-one loops keep the parameter before's last results while the
next parameter's are made. ``weight_decay`` and ``maximize`` copy the gradient unless the decay is decoupled. Kernels
allocate nothing (fused ones, and foreach ones whose lists share shape, dtype and device), which leaves out cuBLAS
workspaces and the scratch of reductions. tests/optimizers/test_torch.py measures each line of this file.
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count, minimum
from memcalc.optimizers.base import Implementation, Options, Param, Temporary
from memcalc.tensors import itemsize

SCALAR = 4
"""Bytes of a 0-dim float32: the steps and the corrections made of them (torch/optim/optimizer.py:210)."""


def live(moment: str, nbytes: Count, *, own: int = 0, before: int = 0, every: int = 0) -> Iterator[Temporary]:
    """The buffers of one moment: the current parameter's, what the one before left, and lists with one for every tensor."""
    for over, count in (("max", own), ("previous", before), ("sum", every)):
        if count:
            yield Temporary(moment, nbytes, over, count, moment)  # type: ignore[arg-type]


def copies(o: Options) -> int:
    """Copies of a gradient that outlive their making: one for weight decay in the gradient, maximize, or both at once."""
    decayed = bool(o.weight_decay) and not o.get("decoupled_weight_decay", False)
    return int(decayed or bool(o.maximize))


def sgd(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/sgd.py:322-476."""
    gradient = p.numel * max(itemsize(p.grad_dtype), itemsize(p.dtype) if o.weight_decay else 0)
    momentum, nesterov, maximize = bool(o.momentum), bool(o.nesterov), bool(o.maximize)
    if form == "foreach":
        yield from live("gradients", gradient, every=copies(o))
    if form == "single":
        # -grads[i] is made before the name ``grad`` lets go of the last one; with momentum that name is the buffer's
        yield from live("gradients", gradient, own=int(maximize), before=int(maximize and (nesterov or not momentum)))
        yield from live("decay", gradient, own=2 * int(maximize and bool(o.weight_decay)))
        yield from live("update", gradient, own=copies(o) + int(nesterov))


def adam(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/adam.py:347-800; AdamW is Adam with decoupled decay (adamw.py:51)."""
    if form == "foreach":
        # scaled_device_grads exists when the betas are tensors; both lists are deleted before exp_avg_sq_sqrt is made
        yield from live("gradients", p.nbytes, every=copies(o) + int(bool(o.tensor_betas)))
        yield from live("update", p.nbytes, every=1)
        yield from live("update", SCALAR, every=2 * int(bool(o.capturable)))
    if form == "single":
        yield from live("gradients", p.nbytes, own=int(bool(o.maximize)), before=2 * int(bool(o.maximize)))
        yield from live("update", p.nbytes, own=2 + copies(o), before=1)  # sqrt, quotient; the last denom


def adamw(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """Adam's step with the decay decoupled."""
    return adam(p, Options({**o, "decoupled_weight_decay": True}), form)


def adagrad(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/adagrad.py:364-540: std, and the numerator, which reuses the gradient's copy where there is one."""
    if form == "foreach":
        yield from live("update", p.nbytes, every=2)
    if form == "single":
        yield from live("update", p.nbytes, own=1 + copies(o), before=1)


def adadelta(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/adadelta.py:245-399: std and delta."""
    if form == "foreach":
        yield from live("update", p.nbytes, every=2 + copies(o))
    if form == "single":
        yield from live("std", p.nbytes, own=1 + copies(o), before=2)
        yield from live("delta", p.nbytes, own=2 + copies(o), before=1)


def rmsprop(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/rmsprop.py:265-470: avg, centred or not."""
    if form == "foreach":
        yield from live("update", p.nbytes, every=1 + copies(o))
    if form == "single":
        yield from live("update", p.nbytes, own=1 + copies(o), before=1)


def nadam(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/nadam.py:281-610; capturable multiplies tensors where the default passes numbers to addcdiv."""
    capturable, maximize = int(bool(o.capturable)), int(bool(o.maximize))
    if form == "foreach":
        yield from live("update", p.nbytes, every=1 + copies(o) + capturable)
        yield from live("update", SCALAR, every=2 * capturable)
    if form == "single":
        yield from live("gradients", p.nbytes, own=maximize, before=(2 + capturable) * maximize)
        yield from live("denom", p.nbytes, own=2 + copies(o), before=1)
        yield from live("update", p.nbytes, own=3 * capturable)


def radam(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/radam.py:256-563, in the rectified regime (from step 6 with the default betas)."""
    capturable, maximize = int(bool(o.capturable)), int(bool(o.maximize))
    if form == "foreach":
        yield from live("gradients", p.nbytes, every=copies(o))
        yield from live("gradients", SCALAR, every=2 * capturable)
        yield from live("update", p.nbytes, every=1)
        yield from live("update", SCALAR, every=2 * capturable)
    if form == "single":
        yield from live("gradients", p.nbytes, own=maximize, before=(2 + capturable) * maximize)
        yield from live("corrected", p.nbytes, own=1 + copies(o), before=1 + capturable)
        # bias_corrected_exp_avg, its product with lr, sqrt, reciprocal, quotient; tensors divide without a reciprocal
        yield from live("rectified", p.nbytes, own=3 * capturable + copies(o), before=capturable)
        yield from live("update", p.nbytes, own=5 - capturable + copies(o))


def adamax(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/adamax.py:226-420: |grad|, in the gradient's copy under foreach; a denominator if capturable."""
    capturable = int(bool(o.capturable))
    if form == "foreach":
        yield from live("update", p.nbytes, every=1 + capturable)
        yield from live("update", SCALAR, every=capturable)
    if form == "single":
        yield from live("update", p.nbytes, own=1 + copies(o), before=capturable)


def rprop(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/rprop.py:223-408: signs of the products, and masks of one byte an element for one tensor at a time."""
    maximize, capturable = int(bool(o.maximize)), int(bool(o.capturable))
    if form == "foreach":
        yield from live("update", p.nbytes, every=1, own=1)
        yield from live("update", p.numel, own=1)
    if form == "single":
        yield from live("sign", p.nbytes, own=2 + maximize, before=1)
        yield from live("update", p.nbytes, own=3)
        yield from live("update", p.numel, own=capturable)


def asgd(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/asgd.py:197-420; before t0 steps (a million by default) the average is a copy."""
    decayed, maximize = bool(o.weight_decay), bool(o.maximize)
    if form == "foreach":
        yield from live("update", p.nbytes, every=1 + int(maximize))
    if form == "single":
        averages = bool(o.capturable) or o.t0 < 1
        yield from live("gradients", p.nbytes, own=2 * int(decayed and maximize))
        yield from live("update", p.nbytes, own=copies(o) + int(averages))


def adafactor(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/_adafactor.py:330-600: the estimate of the variance, and the means or the squares it is made from.

    Exact for matrices alone and for vectors alone. Where both are mixed, the last vector's square outlives the matrices
    after it and the last matrix's means the vectors after it, which is left out, and under foreach with maximize the two
    kinds are negated in turn, not together.
    """
    maximize, factored = int(bool(o.maximize)), int(p.ndim > 1)
    size = itemsize(p.grad_dtype)
    gradient, one_each = p.numel * size, matrices(p) * size
    if form == "foreach":
        yield from live("update", gradient, every=1 + maximize)
        yield from live("update", one_each, every=factored)  # row_var_means; a vector's square is deleted by then
    if form == "single":
        yield from live("gradients", gradient, own=maximize, before=1 + maximize)
        yield from live("update", gradient, own=1 + maximize, before=1)
        for mean in factors(p) if factored else (gradient // size,):
            yield from live("gradients", mean * size, before=1)
            yield from live("update", mean * size, own=1)
        yield from live("update", one_each, own=factored)


def factors(p: Param) -> tuple[Count, Count]:
    """Elements of Adafactor's row and column statistics, which fold the last two dimensions (_adafactor.py:98-107)."""
    if p.ndim < 2:
        return 0, 0
    stack = matrices(p)
    return stack * p.shape[-2], stack * p.shape[-1]


def matrices(p: Param) -> Count:
    """How many matrices the leading dimensions stack."""
    stack: Count = 1
    for size in p.shape[:-2]:
        stack = stack * size
    return stack


def muon(p: Param, o: Options, form: Implementation) -> Iterator[Temporary]:
    """torch/optim/_muon.py:31-75 and 308-340: the iterate, the next one, and two matrices of the smaller side squared."""
    half = 2 * p.numel  # the iterate is bfloat16 whatever the gradient
    gram = 2 * minimum(p.shape[0], p.shape[1]) * minimum(p.shape[0], p.shape[1])
    nesterov = int(bool(o.nesterov))
    gradient = p.numel * itemsize(p.grad_dtype)
    yield from live("nesterov", gradient, own=nesterov)
    yield from live("nesterov", half, before=1)  # the last parameter's orthogonalised update
    yield from live("iterate", gradient, own=nesterov)  # alive in the caller through the whole iteration
    # the first iterate is the bfloat16 cast of the gradient: nothing new for bfloat16, but freed after one Newton-Schulz step
    cast = p.grad_dtype != "bfloat16" or o.ns_steps > 1
    yield from live("iterate", half, own=int(cast) + int(o.ns_steps > 0))
    yield from live("iterate", gram, own=2 * int(o.ns_steps > 0))
