"""DeepSpeed 0.19.8's own optimizers (deepspeed.ops), as they are without ZeRO: fused on the device, ``CPU`` on the host.

The fused classes keep state in the parameter's dtype, so fp32 only where the engine hands them fp32 masters. The CPU classes
take parameters that already live on the host (``offload_optimizer``) and keep float32 whatever those are, unless told.
Steps are Python numbers. tests/optimizers/test_source_only.py runs the real classes where deepspeed is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from memcalc.optimizers.base import Implementation, Options, Param, State, Temporary, optimizer
from memcalc.tensors import itemsize

SOURCE = "deepspeed 0.19.8 deepspeed/ops/"
FLOATS = ("float16", "bfloat16", "float32")


def no_amsgrad(o: Options) -> Iterator[tuple[str, str]]:
    """The fused kernels have no third moment."""
    if o.amsgrad:
        yield "amsgrad", "is not supported by the fused kernel"


def overflow_flag(params: Sequence[Param], o: Options) -> Iterator[State]:
    """The int32 that the multi-tensor kernels take (adam/fused_adam.py:96)."""
    yield State("_dummy_overflow_buf", "step", "int32", 1)


FUSED: dict[str, Any] = {"needs": "float16, bfloat16 or float32", "accepts": lambda p: p.dtype in FLOATS}
ADAM = {"lr", "bias_correction", "betas", "eps", "weight_decay"}


@optimizer(
    "deepspeed:FusedAdam",
    cls="deepspeed.ops.adam.FusedAdam",
    summary="momentum and variance in the parameter's dtype",
    source=SOURCE + "adam/fused_adam.py:96, 149-157",
    options={"amsgrad": False},
    constructor=ADAM | {"adam_w_mode", "set_grad_none"},
    refuses=no_amsgrad,
    shared=overflow_flag,
    **FUSED,
)
def fused_adam(p: Param, o: Options) -> Iterator[State]:
    """Two moments."""
    yield State("exp_avg", "momentum", p.dtype, p.numel)
    yield State("exp_avg_sq", "variance", p.dtype, p.numel)


@optimizer(
    "deepspeed:FusedLion",
    cls="deepspeed.ops.lion.FusedLion",
    summary="momentum in the parameter's dtype",
    source=SOURCE + "lion/fused_lion.py:44, 93-99",
    constructor={"lr", "betas", "weight_decay", "set_grad_none"},
    shared=overflow_flag,
    **FUSED,
)
def fused_lion(p: Param, o: Options) -> Iterator[State]:
    """One moment."""
    yield State("exp_avg", "momentum", p.dtype, p.numel)


def wide(dtype: str) -> str:
    """The dtype of the LAMB kernel's norms and coefficient: float32 for half precision, else the parameter's."""
    return "float32" if dtype == "float16" else dtype


def lamb_norms(p: Param, o: Options, implementation: Implementation) -> Iterator[Temporary]:
    """Partial sums of the two norms, 512 elements each (csrc/lamb/fused_lamb_cuda.cpp:66-80)."""
    yield Temporary("w_l2_i, u_l2_i", 512 * itemsize(wide(p.dtype)), "max", 2)


@optimizer(
    "deepspeed:FusedLamb",
    cls="deepspeed.ops.lamb.FusedLamb",
    summary="momentum and variance in the parameter's dtype, and each tensor's last coefficient",
    source=SOURCE + "lamb/fused_lamb.py:67, 148-169; csrc/lamb/fused_lamb_cuda.cpp:66-107",
    options={"amsgrad": False},
    constructor=ADAM | {"eps_inside_sqrt", "max_grad_norm", "max_coeff", "min_coeff"},
    refuses=no_amsgrad,
    temporaries=lamb_norms,
)
def fused_lamb(p: Param, o: Options) -> Iterator[State]:
    """The coefficients are kept in a list until the next step, for people to read."""
    yield from fused_adam(p, o)
    yield State("lamb_coeffs", "step", wide(p.dtype), 1)


def on_host(name: str, part: str, p: Param, o: Options) -> State:
    """A state beside a parameter that lives on the host."""
    return State(name, part, "float32" if o.fp32_optimizer_states else p.dtype, p.numel, place="host")


HOST: dict[str, Any] = {"options": {"fp32_optimizer_states": True}, "needs": "a parameter on the host"}


@optimizer(
    "deepspeed:DeepSpeedCPUAdam",
    cls="deepspeed.ops.adam.DeepSpeedCPUAdam",
    summary="float32 momentum and variance on the host",
    source=SOURCE + "adam/cpu_adam.py:150-165",
    constructor=ADAM | {"amsgrad", "adamw_mode"},
    **HOST,
)
def cpu_adam(p: Param, o: Options) -> Iterator[State]:
    """Two moments; amsgrad is taken and ignored."""
    yield on_host("exp_avg", "momentum", p, o)
    yield on_host("exp_avg_sq", "variance", p, o)


@optimizer(
    "deepspeed:DeepSpeedCPUAdagrad",
    cls="deepspeed.ops.adagrad.DeepSpeedCPUAdagrad",
    summary="a float32 sum of squares on the host",
    source=SOURCE + "adagrad/cpu_adagrad.py:77-87",
    constructor={"lr", "eps", "weight_decay", "amsgrad"},
    **HOST,
)
def cpu_adagrad(p: Param, o: Options) -> Iterator[State]:
    """One accumulator."""
    yield on_host("exp_avg_sq", "variance", p, o)


@optimizer(
    "deepspeed:DeepSpeedCPULion",
    cls="deepspeed.ops.lion.DeepSpeedCPULion",
    summary="float32 momentum on the host, and a variance that is allocated and never used",
    source=SOURCE + "lion/cpu_lion.py:110-133",
    constructor={"lr", "betas", "weight_decay"},
    **HOST,
)
def cpu_lion(p: Param, o: Options) -> Iterator[State]:
    """The update reads exp_avg alone; exp_avg_sq is made all the same."""
    yield on_host("exp_avg", "momentum", p, o)
    yield on_host("exp_avg_sq", "variance", p, o)
