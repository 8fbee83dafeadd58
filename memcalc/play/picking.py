"""Advanced indexing: rows picked by whole numbers, whose gradients are added into zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.kernels.sorting import radix_sort
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def picked(machine: Machine, value: Value, dim: int, *indices: Value) -> Value:
    """``value[..., i, j, ...]``: one-dimensional indices over neighbouring dimensions from ``dim`` on."""
    shape = (*value.shape[:dim], *indices[0].shape, *value.shape[dim + len(indices) :])
    out = machine.new(shape, value.dtype, "index.Tensor")
    return machine.record(out, (value,), indices, _picked_backward, value.shape)


def _picked_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """Zeros of the source's shape, added to in place after the indices have been sorted.

    source: pytorch FunctionsManual.cpp:index_backward; native/cuda/Indexing.cu:index_put_with_sort_kernel
    """
    out = machine.new(node.meta, grad.dtype, "new_zeros")
    number = saved[0].numel
    held: list[tuple[str, Count]] = [] if grad.contiguous else [("contiguous values", grad.nbytes)]
    held += [(name, 8 * number) for name in ("linearIndex", "sorted_indices", "orig_indices", "range")]
    machine.scratches([*held, ("cub radix sort", radix_sort(number, 8, 8))])
    return (out,)
