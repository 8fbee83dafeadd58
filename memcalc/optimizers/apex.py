"""NVIDIA apex at 6424da3b (2026-07-08), apex/optimizers: read from its source, for its kernels need CUDA.

It is installed from its repository; the name on PyPI belongs to another project. Every class keeps one int32 flag for its
multi-tensor kernels. Steps are Python numbers unless capturable. The kernels of Adam, SGD and Adagrad work in place; those of
the LAMBs and NovoGrad take norms first, whose scratch is not modelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from memcalc.arrays import Count
from memcalc.optimizers.base import Options, Param, State, optimizer

SOURCE = "NVIDIA/apex 6424da3b apex/optimizers/"
HALF_OR_SINGLE: dict[str, Any] = {
    "needs": "float16 or float32",
    "accepts": lambda p: p.dtype in ("float16", "float32"),
}


def flag(params: Sequence[Param], o: Options) -> Iterator[State]:
    """The int32 that every multi-tensor kernel takes."""
    yield State("_dummy_overflow_buf", "step", "int32", 1)


def flag_and_scalars(params: Sequence[Param], o: Options) -> Iterator[State]:
    """With capturable also the learning rate, whose default stays on the host, and the step (fused_adam.py:89-123)."""
    yield from flag(params, o)
    if o.capturable:
        yield from tensor_scalars()


def tensor_scalars() -> Iterator[State]:
    """A group's learning rate and step on the device, and the learning rate they were copied from."""
    yield State("lr", "step", "float32", 1)
    yield State("step", "step", "int32", 1)
    yield State("defaults.lr", "step", "float32", 1, place="host")


def no_amsgrad(o: Options) -> Iterator[tuple[str, str]]:
    """The kernels have no third moment."""
    if o.amsgrad:
        yield "amsgrad", "is not supported by the fused kernel"


def adam_refusals(o: Options) -> Iterator[tuple[str, str]]:
    """fused_adam.py:82-87."""
    yield from no_amsgrad(o)
    if o.master_weights and not o.capturable:
        yield "master_weights", "needs capturable=true"


@optimizer(
    "apex:FusedAdam",
    cls="apex.optimizers.FusedAdam",
    summary="float32 momentum and variance whatever the parameter, and a float32 master with master_weights",
    source=SOURCE + "fused_adam.py:103-117, 204-210; the masters are born with the optimizer",
    options={"amsgrad": False, "capturable": False, "master_weights": False},
    constructor={"lr", "bias_correction", "betas", "eps", "adam_w_mode", "weight_decay", "set_grad_none"},
    refuses=adam_refusals,
    shared=flag_and_scalars,
    needs="float16, bfloat16 or float32",
    accepts=lambda p: p.dtype in ("float16", "bfloat16", "float32"),
)
def fused_adam(p: Param, o: Options) -> Iterator[State]:
    """The masters, of float32 parameters too, lie in param_groups_master and not in the state."""
    if o.master_weights:
        yield State("param_groups_master", "master", "float32", p.numel)
    yield State("exp_avg", "momentum", "float32", p.numel)
    yield State("exp_avg_sq", "variance", "float32", p.numel)


LAMB = {"lr", "bias_correction", "betas", "eps", "weight_decay", "adam_w_mode", "grad_averaging"}


@optimizer(
    "apex:FusedLAMB",
    cls="apex.optimizers.FusedLAMB",
    summary="momentum and variance in the parameter's dtype",
    source=SOURCE + "fused_lamb.py:95-97, 186-192",
    options={"amsgrad": False},
    constructor=LAMB | {"set_grad_none", "max_grad_norm", "use_nvlamb"},
    refuses=no_amsgrad,
    shared=flag,
    temporaries=None,
    **HALF_OR_SINGLE,
)
def fused_lamb(p: Param, o: Options) -> Iterator[State]:
    """Two moments."""
    yield State("exp_avg", "momentum", p.dtype, p.numel)
    yield State("exp_avg_sq", "variance", p.dtype, p.numel)


def mixed_scalars(params: Sequence[Param], o: Options) -> Iterator[State]:
    """Learning rate and step are tensors here whatever the options (fused_mixed_precision_lamb.py:31-57)."""
    yield from flag(params, o)
    yield from tensor_scalars()
    yield State("defaults.step", "step", "int32", 1, place="host")


@optimizer(
    "apex:FusedMixedPrecisionLamb",
    cls="apex.optimizers.FusedMixedPrecisionLamb",
    summary="momentum and variance in the parameter's dtype; with reduced_precision_dtype float32, and a master",
    source=SOURCE + "fused_mixed_precision_lamb.py:31-62, 139-153, 244-257",
    options={"amsgrad": False, "reduced_precision_dtype": None},
    constructor=LAMB | {"step", "max_grad_norm", "use_nvlamb"},
    refuses=no_amsgrad,
    shared=mixed_scalars,
    temporaries=None,
)
def fused_mixed_precision_lamb(p: Param, o: Options) -> Iterator[State]:
    """``reduced_precision_dtype`` by torch's name, as ``float16``; set, it makes the step fail for any other parameter."""
    reduced = p.dtype == o.reduced_precision_dtype
    dtype = "float32" if reduced else p.dtype
    if reduced:
        yield State("param_groups_full_precision", "master", "float32", p.numel)
    yield State("exp_avg", "momentum", dtype, p.numel)
    yield State("exp_avg_sq", "variance", dtype, p.numel)


def sgd_refusals(o: Options) -> Iterator[tuple[str, str]]:
    """fused_sgd.py:103."""
    if o.nesterov and (not o.momentum or o.dampening):
        yield "nesterov", "needs momentum above 0 and dampening 0"


@optimizer(
    "apex:FusedSGD",
    cls="apex.optimizers.FusedSGD",
    summary="momentum in the parameter's dtype, even without momentum",
    source=SOURCE + "fused_sgd.py:117-119, 136-152",
    options={"momentum": 0.0, "dampening": 0.0, "nesterov": False},
    constructor={"lr", "weight_decay", "wd_after_momentum", "materialize_master_grads", "set_grad_none"},
    refuses=sgd_refusals,
    shared=flag,
    **HALF_OR_SINGLE,
)
def fused_sgd(p: Param, o: Options) -> Iterator[State]:
    """The buffer is made before momentum is looked at."""
    yield State("momentum_buffer", "momentum", p.dtype, p.numel)


@optimizer(
    "apex:FusedAdagrad",
    cls="apex.optimizers.FusedAdagrad",
    summary="the sum of squares in the parameter's dtype",
    source=SOURCE + "fused_adagrad.py:62, 97-101",
    constructor={"lr", "eps", "weight_decay", "set_grad_none", "adagrad_w_mode"},
    shared=flag,
    **HALF_OR_SINGLE,
)
def fused_adagrad(p: Param, o: Options) -> Iterator[State]:
    """One accumulator."""
    yield State("sum", "variance", p.dtype, p.numel)


def norms(params: Sequence[Param], o: Options) -> Iterator[State]:
    """One float32 a tensor, half and single precision apart (fused_novograd.py:180-218)."""
    yield from flag(params, o)
    for dtype in ("float16", "float32"):
        tensors: Count = 0
        for p in params:
            tensors = tensors + (p.count if p.dtype == dtype else 0)
        yield State(f"exp_avg_sq[{dtype}]", "variance", "float32", tensors)


@optimizer(
    "apex:FusedNovoGrad",
    cls="apex.optimizers.FusedNovoGrad",
    summary="momentum in the parameter's dtype and one float32 of variance for a tensor",
    source=SOURCE + "fused_novograd.py:100-102, 161-218",
    options={"amsgrad": False},
    constructor={"lr", "bias_correction", "betas", "eps", "weight_decay", "reg_inside_moment", "grad_averaging"}
    | {"norm_type", "init_zero", "set_grad_none"},
    refuses=no_amsgrad,
    shared=norms,
    temporaries=None,
    **HALF_OR_SINGLE,
)
def fused_novograd(p: Param, o: Options) -> Iterator[State]:
    """The variances are two vectors of the group."""
    yield State("exp_avg", "momentum", p.dtype, p.numel)
