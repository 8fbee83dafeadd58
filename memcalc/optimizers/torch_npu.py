"""torch_npu for Ascend at 9e73e708a (2026-08-21, for torch 2.13 to 2.15): the NpuFused optimizers, read from their source.

A group's parameters of one dtype, their gradients and each of their states are moved into one flat buffer at the first
step, and the tensors become views of it; so a state is one buffer of a group and dtype, not one of a parameter
(torch_npu/optim/npu_fused_optim_base.py:27-108, torch_npu/utils/combine_tensors.py:8-46). float32 and float16 are taken, any
other dtype raises. Gradients cannot be set to None: their buffer lives on. The step works on the flat buffers with ordinary
operators, so its temporaries are as long as the model. Sizes are those of the base storage format; a private format pads.

``clip_grad_norm_fused`` says that clip_grad_norm_fused_ is called, which builds a float32 mask as long as the gradients once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from memcalc.arrays import Count
from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer

SOURCE = "Ascend/pytorch 9e73e708a torch_npu/optim/"
DTYPES = ("float32", "float16")
Named = Callable[[Options], Iterator[tuple[str, str]]]
"""Names and parts of the states of one class."""


def flat(names: Named, params: Sequence[Param], o: Options) -> Iterator[State]:
    """One buffer for each state and dtype, as long as all parameters of that dtype together."""
    for dtype in DTYPES:
        size: Count = 0
        for p in params:
            size = size + (p.numel * p.count if p.dtype == dtype else 0)
        for name, part in names(o):
            yield State(f"combined {name}", part, dtype, size)
        if o.clip_grad_norm_fused:
            yield State("combined_grads_masks", "mask", "float32", size)


def nothing(p: Param, o: Options) -> Iterator[State]:
    """What a parameter's state dict holds are views of the flat buffers, and a step that is a Python number."""
    yield from ()


def adam_names(o: Options) -> Iterator[tuple[str, str]]:
    """Two moments, three with amsgrad."""
    yield "exp_avg", "momentum"
    yield "exp_avg_sq", "variance"
    if o.amsgrad:
        yield "max_exp_avg_sq", "variance"


def sgd_names(o: Options) -> Iterator[tuple[str, str]]:
    """One buffer with momentum."""
    if o.momentum:
        yield "momentum_buffer", "momentum"


def adamw_step(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """Square root and quotient of the variance (npu_fused_adamw.py:160-188)."""
    yield Temporary("sqrt, denom", p.nbytes, "sum", 2)


def adam_step(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """The same, and the decayed gradient (npu_fused_adam.py:171-187)."""
    yield Temporary("sqrt, denom", p.nbytes, "sum", 2 + int(bool(o.weight_decay)))


def sgd_step(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """The decayed gradient and Nesterov's sum (npu_fused_sgd.py:129-165)."""
    yield Temporary("gradients", p.nbytes, "sum", int(bool(o.weight_decay)) + int(bool(o.nesterov)))


def sgd_refusals(o: Options) -> Iterator[tuple[str, str]]:
    """npu_fused_sgd.py:49."""
    if o.nesterov and (not o.momentum or o.dampening):
        yield "nesterov", "needs momentum above 0 and dampening 0"


MASK = {"clip_grad_norm_fused": False}
COMMON: dict[str, Any] = {
    "own": frozenset(MASK),
    "keeps_gradients": True,
    "needs": "float32 or float16",
    "accepts": lambda p: p.dtype in DTYPES,
}

optimizer(
    "torch-npu:NpuFusedAdamW",
    cls="torch_npu.optim.NpuFusedAdamW",
    summary="momentum and variance in the parameter's dtype, in one flat buffer each",
    source=SOURCE + "npu_fused_adamw.py:53-136",
    options={"amsgrad": False, **MASK},
    constructor={"lr", "betas", "eps", "weight_decay"},
    shared=partial(flat, adam_names),
    temporaries=adamw_step,
    **COMMON,
)(nothing)
optimizer(
    "torch-npu:NpuFusedAdam",
    cls="torch_npu.optim.NpuFusedAdam",
    summary="momentum and variance in the parameter's dtype, in one flat buffer each",
    source=SOURCE + "npu_fused_adam.py:52-136",
    options={"amsgrad": False, "weight_decay": 0.0, **MASK},
    constructor={"lr", "betas", "eps"},
    shared=partial(flat, adam_names),
    temporaries=adam_step,
    **COMMON,
)(nothing)
optimizer(
    "torch-npu:NpuFusedSGD",
    cls="torch_npu.optim.NpuFusedSGD",
    summary="nothing; with momentum one flat buffer in the parameter's dtype",
    source=SOURCE + "npu_fused_sgd.py:66-127",
    options={"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, **MASK},
    constructor={"lr"},
    shared=partial(flat, sgd_names),
    temporaries=sgd_step,
    refuses=sgd_refusals,
    **COMMON,
)(nothing)
