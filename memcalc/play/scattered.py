"""Rows written where a mask says, as image features among the embeddings of words, and pooling over an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.kernels.sorting import cub_scan
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def masked_scatter(machine: Machine, value: Value, mask: Value, source: Value) -> Value:
    """``value.masked_scatter(mask, source)``: a copy, the mask stretched over it, and a whole number for each element.

    source: pytorch native/cuda/IndexKernel.cpp:masked_scatter__cuda, IndexKernel.cu:launch_masked_scatter_kernel
    """
    out = machine.new(value.shape, value.dtype, "masked_scatter")
    held: list[tuple[str, Count]] = [("maskPrefixSum", 8 * value.numel), ("contiguous mask", value.numel)]
    if not source.contiguous:
        held.append(("contiguous source", source.nbytes))
    machine.scratches([*held, ("cub scan", cub_scan(value.numel, 8))])
    return machine.record(out, (value, source), (mask,), _scattered_backward, source.shape)


def _scattered_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """derivatives.yaml: self: grad.masked_fill(mask, 0); source: masked_scatter_backward, a selection by its indices."""
    of_value = machine.like(grad, "masked_fill.Scalar") if node.needs(0) else None
    of_source = None
    if node.needs(1):
        of_source = machine.new(node.meta, grad.dtype, "masked_scatter_backward")
        places = 8 * of_source.numel * len(grad.shape)  # TensorAdvancedIndexing.cpp:index, by nonzero of the stretched mask
        scan = cub_scan(grad.numel, 4)
        machine.scratches([("nonzero", places), ("contiguous mask", grad.numel), ("cub scan", scan)])
    return of_value, of_source


def average_pool(machine: Machine, value: Value, height: Count, width: Count) -> Value:
    """``nn.AvgPool2d`` of a planar ``(rows, features, …)`` to so many places (native/cuda/AveragePool2d.cu)."""
    out = machine.new((*value.shape[:2], height, width), value.dtype, "avg_pool2d")
    return machine.record(out, (value,), (value,), _pool_backward)


def _pool_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    out = machine.like(saved[0], "avg_pool2d_backward")
    if not grad.contiguous:
        machine.scratch(grad.nbytes, "grad_output in the kernel's layout")
    return (out,)
