"""How Mamba's mixer runs: by mamba-ssm's kernels, or in plain PyTorch.

source: transformers 5.23.0 models/mamba/modeling_mamba.py:MambaMixer.forward
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from memcalc.arrays import both
from memcalc.errors import NotModelledError
from memcalc.play.activations import activated
from memcalc.play.adapting import counted
from memcalc.play.convolution import convolution
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.pointwise import add, exp, mul, neg, silu, softplus, to
from memcalc.play.reshape import contiguous, merge_dims, narrow, pieces, transpose, unsqueeze
from memcalc.play.scan import sequential_scan
from memcalc.play.selective_scan import Operands, mamba_inner
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.layers.basic import Linear
    from memcalc.layers.state_space import MambaMixer

WIDE = "float32"


def _decay(machine: Machine, mixer: MambaMixer) -> Value:
    """``-exp(A_log)`` in FP32."""
    logarithm = machine.parameter("A_log", (mixer.inner, mixer.state), "recurrent")
    return neg(machine, exp(machine, to(machine, logarithm, WIDE)))


def _skip(machine: Machine, mixer: MambaMixer) -> Value:
    return to(machine, machine.parameter("D", (mixer.inner,), "recurrent"), WIDE)


def _step_bias(machine: Machine, mixer: MambaMixer) -> Value:
    with machine.at("dt_proj"):
        bias = machine.parameter("bias", (mixer.inner,), "linear")
    return to(machine, bias, WIDE)


def in_torch(machine: Machine, mixer: MambaMixer, hidden: Value) -> Value:
    """Nothing but PyTorch's operators; the locals of the module's forward live until it returns."""
    dtype, parts = hidden.dtype, dict(mixer.matrices())
    projected = transpose(machine, machine.call("in_proj", parts["in_proj"].play, machine, hidden), 1, 2)
    decay = _decay(machine, mixer)
    _offered(machine, mixer)
    inside, gate = pieces(machine, projected, 1, (mixer.inner, mixer.inner))
    inside = _convolved(machine, mixer, inside)
    turned = transpose(machine, inside, 1, 2)
    latent = machine.call("x_proj", parts["x_proj"].play, machine, turned)
    step, entering, leaving = pieces(machine, latent, 2, (mixer.rank, mixer.state, mixer.state))
    del latent, inside
    step = _step_sizes(machine, mixer, step)
    bias = _step_bias(machine, mixer)
    skip = _skip(machine, mixer)
    out = _scanned(machine, transpose(machine, turned, 1, 2), step, decay, entering, leaving, skip, gate, bias)
    made: Value = machine.call("out_proj", parts["out_proj"].play, machine, to(machine, transpose(machine, out, 1, 2), dtype))
    del projected, step, bias, skip, gate
    return made


def _conv_parameters(machine: Machine, mixer: MambaMixer) -> tuple[Value, Value | None]:
    with machine.at("conv1d"):
        weight = machine.parameter("weight", (mixer.inner, 1, mixer.kernel), "conv")
        return weight, machine.parameter("bias", (mixer.inner,), "conv") if mixer.conv_bias else None


def _offered(machine: Machine, mixer: MambaMixer) -> None:
    """Arguments made for the fused kernel, which is not there and gives nothing (modeling_mamba.py:mamba_inner_fn)."""
    skip = _skip(machine, mixer)
    bias = _step_bias(machine, mixer)
    del skip, bias


def _convolved(machine: Machine, mixer: MambaMixer, value: Value) -> Value:
    """source: modeling_mamba.py:causal_conv1d_fn"""
    dtype, tokens = value.dtype, value.shape[2]
    weight, bias = _conv_parameters(machine, mixer)
    weight = unsqueeze(machine, merge_dims(machine, weight, 0, 1), 1)
    out = convolution(machine, to(machine, value, weight.dtype), weight, bias, (1,), (mixer.kernel - 1,))
    out = activated(machine, mixer.activation, narrow(machine, out, 2, tokens))
    return to(machine, out, dtype)


def _step_sizes(machine: Machine, mixer: MambaMixer, latent: Value) -> Value:
    """``weight @ latent.transpose(1, 2)``: folded to one product, turned back and copied.

    source: pytorch ATen LinearAlgebra.cpp:_matmul_impl, a matrix times a batch
    """
    with machine.at("dt_proj"):
        weight = machine.parameter("weight", (mixer.inner, mixer.rank), "linear")
    return contiguous(machine, transpose(machine, linear(machine, latent, weight), 1, 2))


def _scanned(
    machine: Machine,
    value: Value,
    step: Value,
    decay: Value,
    entering: Value,
    leaving: Value,
    skip: Value,
    gate: Value,
    bias: Value,
) -> Value:
    """source: modeling_mamba.py:mamba_selective_scan"""
    step = add(machine, step, unsqueeze(machine, to(machine, bias, step.dtype), 1))
    step = softplus(machine, step)
    decays = unsqueeze(machine, unsqueeze(machine, decay, 1), 0)
    discrete = exp(machine, mul(machine, decays, unsqueeze(machine, step, 3)))
    drive = mul(machine, unsqueeze(machine, step, 3), to(machine, unsqueeze(machine, entering, 1), WIDE))
    driven = mul(machine, drive, to(machine, unsqueeze(machine, value, 3), WIDE))
    out, held = sequential_scan(machine, discrete, driven, leaving)
    out = add(machine, out, mul(machine, value, unsqueeze(machine, unsqueeze(machine, skip, 1), 0)))
    out = mul(machine, out, silu(machine, gate))
    del held, drive, driven, decays
    return out


def fused(machine: Machine, mixer: MambaMixer, hidden: Value) -> Value:
    """mamba-ssm's function from the projected states to the result.

    Raises:
        NotModelledError: a bias on the projections, a wider convolution or a larger state than the kernels take.
    """
    _check(machine, mixer)
    parts = dict(mixer.matrices())
    projected = transpose(machine, machine.call("in_proj", parts["in_proj"].play, machine, hidden), 1, 2)
    decay = _decay(machine, mixer)
    conv_weight, conv_bias = _conv_parameters(machine, mixer)
    x_weight, step_weight, out_weight = (_weight(machine, name, parts[name]) for name in ("x_proj", "dt_proj", "out_proj"))
    skip = _skip(machine, mixer)
    bias = _step_bias(machine, mixer)
    return mamba_inner(
        machine, Operands(projected, conv_weight, conv_bias, x_weight, step_weight, out_weight, decay, skip, bias)
    )


def _check(machine: Machine, mixer: MambaMixer) -> None:
    way_out = "say implementation_args: {kernels: torch}"
    if mixer.bias:  # an FP32 bias beside matrices of another dtype
        raise NotModelledError("model.use_bias", mixer.bias, "is not modelled with mamba-ssm's kernels", way_out)
    # causal-conv1d 1.6.1 csrc/causal_conv1d.cpp:causal_conv1d_fwd; mamba-ssm selective_scan.cpp:selective_scan_fwd
    if not machine.decide(both(mixer.kernel >= 2, mixer.kernel <= 4)):
        raise NotModelledError("model.conv_kernel", mixer.kernel, "is not taken by causal-conv1d: 2 to 4 positions", way_out)
    if not machine.decide(mixer.state <= 256):
        raise NotModelledError("model.state_size", mixer.state, "is not taken by mamba-ssm: up to 256", way_out)


def _weight(machine: Machine, name: str, matrix: Linear) -> Value:
    with machine.at(name):
        if counted(machine.path) in getattr(machine.policy.adapter, "targets", ()):
            raise NotModelledError("training.lora", name, "is read past its adapter by mamba-ssm's kernels",
                                   "adapt in_proj alone, or say implementation_args: {kernels: torch}")  # fmt: skip
        return machine.parameter("weight", (matrix.out_features, matrix.in_features), "linear")


WAYS: dict[str, Callable[[Machine, MambaMixer, Value], Value]] = {"mamba-ssm": fused, "torch": in_torch}
"""By the kernels that are installed."""
