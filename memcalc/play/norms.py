"""Normalisations and softmax, which are one kernel each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, both, ceil_div, maximum, minimum, where
from memcalc.play.graph import Gradients, Node, count_of
from memcalc.play.pointwise import to
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def layer_norm(machine: Machine, value: Value, weight: Value | None, bias: Value | None) -> Value:
    """``torch.layer_norm`` over the last dimension; in FP32 under autocast, its weights too."""
    if machine.autocast is not None:  # arguments of one call, evaluated from the last to the first
        bias = None if bias is None else machine.wide(bias)
        weight = None if weight is None else machine.wide(weight)
        value = machine.wide(value)
    out = machine.new(value.shape, value.dtype, "native_layer_norm")
    rows = (*value.shape[:-1], 1)
    # layer_norm_kernel.cu:layer_norm_cuda: statistics of the accumulation type
    mean = machine.new(rows, "float32", "native_layer_norm")
    rstd = machine.new(rows, "float32", "native_layer_norm")
    machine.scratches(_copies(("input", value)))  # layer_norm_kernel.cu:layer_norm_cuda: input.expect_contiguous()
    return machine.record(out, (value, weight, bias), (value, weight, bias, mean, rstd), _layer_norm_backward)


def _layer_norm_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    value, weight, bias, _, _ = saved
    of_value = machine.new(value.shape, value.dtype, "native_layer_norm_backward") if node.needs(0) else None
    of_weight = machine.new(weight.shape, weight.dtype, "native_layer_norm_backward") if node.needs(1) else None
    of_bias = machine.new(bias.shape, bias.dtype, "native_layer_norm_backward") if node.needs(2) else None
    held = _copies(("grad_out", grad), ("input", value))
    for name, of in (("dgamma", of_weight), ("dbeta", of_bias)):
        if of is not None:
            held += _column_blocks(machine, name, value, of)
    machine.scratches(held)
    return of_value, of_weight, of_bias


def _column_blocks(machine: Machine, name: str, value: Value, of: Value) -> list[tuple[str, Count]]:
    """Many rows of few columns are summed block by block, since torch 2.8.

    source: native/cuda/layer_norm_kernel.cu:LaunchGammaBetaBackwardCUDAKernel (32 rows a block, at most 32768 blocks)
    """
    behaviour = machine.policy.behaviour
    if behaviour.torch < (2, 8):
        return []
    width = value.shape[-1]
    rows = value.numel // width
    split = both(rows > 64 * 1024, width // 32 < behaviour.multiprocessors // 2)
    blocks = where(split, minimum(32768 // maximum(1, ceil_div(width, 32)), ceil_div(rows, 32)), 0)
    return [(f"{name}_blocks", blocks * of.nbytes), (f"{name}, before its sum", where(split, of.nbytes, 0))]


def _copies(*named: tuple[str, Value]) -> list[tuple[str, Count]]:
    return [(f"contiguous {name}", value.nbytes) for name, value in named if not value.contiguous]


def rms_norm(machine: Machine, value: Value, weight: Value | None) -> Value:
    """``torch.rms_norm`` over the last dimension, fused where torch has the kernel (2.9 on)."""
    if machine.autocast is not None and machine.policy.behaviour.torch >= (2, 12):
        weight = None if weight is None else machine.wide(weight)
        value = machine.wide(value)
    out = machine.new(value.shape, value.dtype, "_fused_rms_norm")
    rstd = machine.new((*value.shape[:-1], 1), "float32", "_fused_rms_norm")
    return machine.record(out, (value, weight), (value, weight, rstd), _rms_norm_backward)


def _rms_norm_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    value, weight, _ = saved
    of_value = machine.new(value.shape, value.dtype, "_fused_rms_norm_backward") if node.needs(0) else None
    of_weight = machine.new(weight.shape, weight.dtype, "_fused_rms_norm_backward") if node.needs(1) else None
    return of_value, of_weight


def softmax(machine: Machine, value: Value, dtype: str | None = None) -> Value:
    """``torch.softmax`` over the last dimension, in ``dtype`` where one is given; in FP32 under autocast.

    FP16 to FP32 is one kernel (SoftMax.cpp:softmax), any other conversion a copy.
    """
    return _softmax_like(machine, value, dtype, "_softmax")


def log_softmax(machine: Machine, value: Value, dtype: str | None = None) -> Value:
    """Its logarithm, in the same manner."""
    return _softmax_like(machine, value, dtype, "_log_softmax")


def _softmax_like(machine: Machine, value: Value, dtype: str | None, operator: str) -> Value:
    if dtype is None and machine.autocast is not None:
        dtype = "float32"
    given = value.dtype
    if dtype is not None and not (given == "float16" and dtype == "float32"):
        value = to(machine, value, dtype)
    if not value.contiguous:
        machine.scratch(value.nbytes, "contiguous input")
    out = machine.new(value.shape, dtype or given, operator)
    return machine.record(out, (value,), (out,), _softmax_backward, (operator, value.dtype))


def _softmax_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    operator, dtype = node.meta
    return (machine.new(saved[0].shape, dtype, f"{operator}_backward_data"),)


def embedding(machine: Machine, indices: Value, weight: Value) -> Value:
    """Rows of a table."""
    out = machine.new((*indices.shape, weight.shape[1]), weight.dtype, "embedding")
    return machine.record(out, (weight,), (indices,), _embedding_backward, weight.shape)


ROWS_PER_THREAD = 10  # EmbeddingBackwardKernel.cu:NROWS_PER_THREAD


def _embedding_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    if not grad.contiguous:
        grad = machine.new(grad.shape, grad.dtype, "contiguous grad")
    out = machine.new(node.meta, grad.dtype, "embedding_dense_backward")
    machine.scratches(_embedding_scratch(machine, count_of(saved[0].shape), node.meta, grad.itemsize))
    return (out,)


def _embedding_scratch(machine: Machine, number: Count, table: Any, item: int) -> list[tuple[str, Count]]:
    """native/cuda/EmbeddingBackwardKernel.cu:embedding_backward_cuda_kernel; up to 3,072 indices are added straight."""
    many = number > 3072
    number = where(many, number, 0)
    segments = minimum(number, table[0])
    partial = number // ROWS_PER_THREAD + segments
    word = 8
    return [
        ("sorted_indices", number * word),
        ("orig_indices", number * word),
        ("segment_offsets", number * word),
        ("num_of_segments", where(many, 8, 0)),
        ("partials_per_segment", segments * word),
        ("partials_per_segment_offset", segments * word),
        ("num_of_partial_segments", where(many, 8, 0)),
        ("partial_segment_offset", partial * word),
        ("grad_weight_per_segment", partial * table[1] * max(4, item)),
    ]
