"""Batch normalisation in training, by cuDNN or by PyTorch's own kernel, and pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Condition, Count
from memcalc.kernels.convolution import extent
from memcalc.play.convolution import LAST, is_last, lies
from memcalc.play.graph import Gradients, Node
from memcalc.play.pointwise import threshold_backward
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

ROWS = 880801
"""The largest batch that cuDNN trains (Normalization.cpp:_select_batch_norm_backend)."""


def batch_norm(machine: Machine, value: Value, weight: Value, bias: Value) -> Value:
    """``(rows, channels, height, width)``; the running statistics are changed in place."""
    last = is_last(value)
    if _by_cudnn(machine, value, weight):
        # cudnn/BatchNorm.cpp:cudnn_batch_norm: statistics of the weight's dtype; the planar mode keeps no reserve
        operator, statistics, backward = "cudnn_batch_norm", weight.dtype, _cudnn_backward
        if last:
            machine.scratch(4 * 256 * value.shape[1], "cuDNN workspace")
    else:
        # Normalization.cu:batch_norm_cuda: statistics of the accumulation dtype
        operator, statistics, backward = "native_batch_norm", "float32", _native_backward
    out = machine.new(value.shape, value.dtype, operator, LAST if last else None)
    mean = machine.new((value.shape[1],), statistics, operator)
    spread = machine.new((value.shape[1],), statistics, operator)
    if operator == "native_batch_norm" and last:  # Normalization.cuh:batch_norm_stats_channels_last_cuda_template
        machine.scratches([("staging_data", 4 * 128 * value.shape[1] * 4), ("semaphores", 4 * value.shape[1])])
    return machine.record(out, (value, weight, bias), (value, weight, mean, spread), backward, bias.dtype)


def _by_cudnn(machine: Machine, value: Value, weight: Value) -> bool:
    """Normalization.cpp:_select_batch_norm_backend"""
    if value.dtype == "bfloat16" or weight.dtype == "bfloat16":
        return False
    if value.dtype == "float16" and weight.dtype != "float32":
        return False
    small: Condition = (value.shape[0] <= ROWS) & (value.numel < 2**31 - 1)  # "32-bit indexing limitations"
    return machine.decide(small)


def _gradients(machine: Machine, node: Node, saved: Any, operator: str) -> list[Value | None]:
    value, weight = saved[:2]
    order = value.order if value.dense else None
    of_value = machine.new(value.shape, value.dtype, operator, order) if node.needs(0) else None
    of_weight = machine.new(weight.shape, weight.dtype, operator) if node.needs(1) else None
    of_bias = machine.new(weight.shape, node.meta, operator) if node.needs(2) else None
    return [of_value, of_weight, of_bias]


def _cudnn_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: native/cudnn/BatchNorm.cpp:cudnn_batch_norm_backward"""
    value, last = saved[0], is_last(saved[0])
    copied = None if lies(machine, grad, last=last) else machine.new(grad.shape, grad.dtype, "contiguous grad_output")
    found = _gradients(machine, node, saved, "cudnn_batch_norm_backward")
    if last:
        machine.scratch(4 * 256 * value.shape[1], "cuDNN workspace")
    del copied
    return found


def _native_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: native/cuda/Normalization.cu:batch_norm_backward_cuda; Normalization.cuh"""
    found = _gradients(machine, node, saved, "native_batch_norm_backward")
    held: list[tuple[str, Count]] = []
    channels = saved[0].shape[1]
    if is_last(saved[0]):
        held = [("sum_dy", 4 * channels), ("sum_dy_xmu", 4 * channels), ("staging_data", 2 * 128 * channels * 4)]
        held.append(("semaphores", 4 * channels))
    elif not grad.contiguous:
        held = [("contiguous grad_out", grad.nbytes)]
    machine.scratches(held)
    return found


def max_pool(machine: Machine, value: Value, kernel: int, stride: int, padding: int) -> Value:
    """``max_pool2d``: the places of the maxima are kept as 64-bit numbers."""
    last = is_last(value)
    sizes = (extent(size, kernel, stride, padding) for size in value.shape[2:])
    shape, order = (*value.shape[:2], *sizes), LAST if last else None
    if not lies(machine, value, last=last):
        machine.scratch(value.nbytes, "input in the kernel's layout")
    out = machine.new(shape, value.dtype, "max_pool2d_with_indices", order)
    places = machine.new(shape, "int64", "max_pool2d_with_indices", order)
    return machine.record(out, (value,), (value, places), _max_pool_backward)


def _max_pool_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """source: native/cuda/DilatedMaxPool2d.cu:max_pool2d_with_indices_backward_out_cuda"""
    last = is_last(saved[0])
    out = machine.like(saved[0], "max_pool2d_with_indices_backward")
    if not lies(machine, grad, last=last):
        machine.scratch(grad.nbytes, "grad_output in the kernel's layout")
    return (out,)


def relu_in_place(machine: Machine, value: Value) -> Value:
    """``relu_``: the same memory, which is saved as its result."""
    out = Value(value.storage, value.shape, value.dtype, value.order, value.view, value.gaps)
    return machine.record(out, (value,), (out,), threshold_backward)


__all__ = ["batch_norm", "max_pool", "relu_in_place"]
