"""Mamba's mixer as mamba-ssm's fused function runs it: convolution, projections and scan are one node of the graph.

What it saves it chooses itself; the convolution's result and the step sizes are made again in backward (``checkpoint_lvl=1``).

source: mamba-ssm 2.3.2.post1 mamba_ssm/ops/selective_scan_interface.py:MambaInnerFn, csrc/selective_scan/selective_scan.cpp;
causal-conv1d 1.6.1 causal_conv1d/cpp_functions.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, ceil_div
from memcalc.play.graph import Gradients, Node
from memcalc.play.reshape import contiguous
from memcalc.play.values import Value
from memcalc.records import dataclass

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

CHUNK = 2048
"""Tokens of which a scan keeps one state (csrc/selective_scan/selective_scan.cpp:selective_scan_fwd, n_chunks)."""
WIDE = "float32"


@dataclass
class Operands:
    """What the fused function is given.

    Attributes:
        projected: channels and gate, ``(rows, 2 · channels, tokens)``.
        conv_weight: ``(channels, 1, kernel)``.
        conv_bias: ``(channels,)``, or None.
        x_weight: ``(rank + 2 · state, channels)``.
        step_weight: ``(channels, rank)``.
        out_weight: ``(hidden, channels)``.
        decay: ``(channels, state)`` in FP32.
        skip: ``(channels,)`` in FP32.
        step_bias: likewise.
    """

    projected: Value
    conv_weight: Value
    conv_bias: Value | None
    x_weight: Value
    step_weight: Value
    out_weight: Value
    decay: Value
    skip: Value
    step_bias: Value

    def inputs(self) -> tuple[Value | None, ...]:
        """All of them, in order."""
        weights = (self.conv_weight, self.conv_bias, self.x_weight, self.step_weight, self.out_weight)
        return (self.projected, *weights, self.decay, self.skip, self.step_bias)


@dataclass
class _Sizes:
    rows: Count
    tokens: Count
    channels: Count
    state: Count
    rank: Count
    hidden: Count
    kernel: Count

    @property
    def inside(self) -> tuple[Count, ...]:
        return (self.rows, self.channels, self.tokens)

    @property
    def places(self) -> Count:
        return self.rows * self.tokens

    @property
    def latent(self) -> tuple[Count, ...]:
        return (self.places, self.rank + 2 * self.state)


def mamba_inner(machine: Machine, given: Operands) -> Value:
    """``(rows, tokens, hidden)``; in autocast's dtype, of whose weights it makes copies of its own."""
    (channels, state), (rows, _, tokens) = given.decay.shape, given.projected.shape
    hidden, kernel = given.out_weight.shape[0], given.conv_weight.shape[-1]
    sizes = _Sizes(rows, tokens, channels, state, given.step_weight.shape[1], hidden, kernel)
    weights = [_low(machine, weight) for weight in (given.x_weight, given.step_weight, given.out_weight)]
    projected = contiguous(machine, given.projected.detached())
    dtype = projected.dtype
    latent, entering, leaving, scanned = _forward(machine, sizes, dtype)
    out, states, gated = scanned
    del scanned
    trains = given.out_weight.node is not None
    made = _projected(machine, sizes, gated, folded=trains and weights[2].dtype == given.out_weight.dtype)
    del gated
    result = Value(made.storage, (rows, tokens, hidden), dtype)
    del made
    saved = (
        projected, given.conv_weight, given.conv_bias, latent, *weights, given.decay, entering, leaving, given.skip,
        given.step_bias, states, out,
    )  # fmt: skip
    del projected, latent, weights, entering, leaving, states, out
    return machine.record(result, given.inputs(), saved, _backward, (sizes, given.conv_bias is not None))


def _projected(machine: Machine, sizes: _Sizes, gated: Value, *, folded: bool) -> Value:
    """The last projection: one product of a copy where the weight itself trains, else one for each row of the batch.

    A copy in autocast's dtype wants no gradient here (pytorch ATen LinearAlgebra.cpp:should_fold: ``t2->requires_grad()``).
    """
    operator = "mm" if folded else "bmm"
    flat = _by_place(machine, sizes, gated) if folded else gated
    machine.blas(operator)
    made = machine.kept((sizes.places, sizes.hidden), gated.dtype, operator)
    del flat
    return made


def _low(machine: Machine, weight: Value) -> Value:
    """A copy in autocast's dtype, made where no graph is, and so not autocast's own."""
    dtype = machine.autocast
    return weight.detached() if dtype in (None, weight.dtype) else machine.like(weight, "_to_copy", dtype)


def _by_place(machine: Machine, sizes: _Sizes, value: Value) -> Value:
    """``b d l -> (b l) d``: a view of one row, a copy of several."""
    if machine.same(sizes.rows, 1):
        return value
    return machine.new((sizes.places, sizes.channels), value.dtype, "clone")


def _forward(machine: Machine, sizes: _Sizes, dtype: str) -> tuple[Value, Value, Value, tuple[Value, Value, Value]]:
    """The latent, what enters and leaves the state, and what the scan gives: its result, its states, its gated result."""
    convolved = machine.new(sizes.inside, dtype, "causal_conv1d_fwd")
    flat = _by_place(machine, sizes, convolved)
    machine.blas("mm")
    latent = machine.kept(sizes.latent, dtype, "mm")
    del flat
    steps = machine.kept((sizes.channels, sizes.places), dtype, "mm")
    entering = machine.new((sizes.rows, 1, sizes.state, sizes.tokens), dtype, "clone")
    leaving = machine.like(entering, "clone")
    scanned = _scan(machine, sizes, dtype)
    del convolved, steps  # made again in backward
    return latent, entering, leaving, scanned


def _scan(machine: Machine, sizes: _Sizes, dtype: str) -> tuple[Value, Value, Value]:
    gated = machine.new(sizes.inside, dtype, "selective_scan_fwd")
    out = machine.new(sizes.inside, dtype, "selective_scan_fwd")
    chunks = ceil_div(sizes.tokens, CHUNK)
    states = machine.new((sizes.rows, sizes.channels, chunks, 2 * sizes.state), WIDE, "selective_scan_fwd")
    return out, states, gated


def _backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """Both are made again, then the scan, the projections and the convolution, in this order."""
    sizes, biased = node.meta
    dtype, conv_dtype = saved[0].dtype, saved[1].dtype
    grad = contiguous(machine, grad)
    convolved = machine.new(sizes.inside, dtype, "causal_conv1d_fwd")
    machine.blas("mm")
    steps = machine.new((sizes.channels, sizes.places), dtype, "mm")
    of_projected = machine.new(saved[0].shape, dtype, "empty_like")
    of_gated = machine.new((sizes.channels, sizes.places), dtype, "mm")
    gated, of_convolved, of_steps, of_state, of_entering, of_leaving = _scan_backward(machine, sizes, dtype)
    machine.blas("bmm")
    of_out_weight = machine.new((sizes.hidden, sizes.channels), dtype, "bmm")
    of_latent = machine.new(sizes.latent, dtype, "empty_like")
    of_entering = machine.new((sizes.places, sizes.state), dtype, "clone")
    del of_entering
    of_leaving = machine.new((sizes.places, sizes.state), dtype, "clone")
    del of_leaving
    of_step_weight = machine.new((sizes.channels, sizes.rank), dtype, "bmm")
    written = machine.new((sizes.places, sizes.rank), dtype, "bmm")
    del written
    of_convolved = _by_place(machine, sizes, of_convolved)
    flat = _by_place(machine, sizes, convolved)
    of_x_weight = machine.new((sizes.latent[1], sizes.channels), dtype, "bmm")
    del flat
    machine.blas("addmm")  # added to in place
    of_conv = _conv_backward(machine, sizes, conv_dtype, biased=biased)
    del gated, of_convolved, of_steps, of_gated, steps, convolved, of_latent
    return (of_projected, *of_conv, of_x_weight, of_step_weight, of_out_weight, *of_state)


def _scan_backward(machine: Machine, sizes: _Sizes, dtype: str) -> tuple[Any, ...]:
    """The gated result made again, and every gradient of the scan's; those of what all channels share are summed in FP32."""
    operator = "selective_scan_bwd"
    gated = machine.new(sizes.inside, dtype, operator)
    of_value = machine.new(sizes.inside, dtype, operator)
    of_steps = machine.new(sizes.inside, dtype, operator)
    of_decay = machine.new((sizes.channels, sizes.state), WIDE, operator)
    of_entering = machine.new((sizes.rows, 1, sizes.state, sizes.tokens), WIDE, operator)
    of_leaving = machine.like(of_entering, operator)
    of_skip = machine.new((sizes.channels,), WIDE, operator)
    of_bias = machine.like(of_skip, operator)
    if dtype != WIDE:  # dB.to(B.dtype()), dC.to(C.dtype()) in one list
        low = (machine.like(of_entering, "_to_copy", dtype), machine.like(of_leaving, "_to_copy", dtype))
        of_entering, of_leaving = low
        del low
    return gated, of_value, of_steps, (of_decay, of_skip, of_bias), of_entering, of_leaving


def _conv_backward(machine: Machine, sizes: _Sizes, dtype: str, *, biased: bool) -> tuple[Value, Value | None]:
    """Summed in FP32, then in the weights' dtype (cpp_functions.py:causal_conv1d_bwd_function)."""
    of_weight = machine.new((sizes.channels, 1, sizes.kernel), WIDE, "causal_conv1d_bwd")
    of_bias = machine.new((sizes.channels,), WIDE, "causal_conv1d_bwd") if biased else None
    if dtype != WIDE:
        of_weight = machine.like(of_weight, "_to_copy", dtype)
        of_bias = of_bias if of_bias is None else machine.like(of_bias, "_to_copy", dtype)
    return of_weight, of_bias
