"""Rows chosen by masks and indices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
from memcalc.kernels.sorting import radix_sort
from memcalc.play.graph import Gradients, Node
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def rows_by_mask(machine: Machine, value: Value, mask: Value, chosen: Count) -> Value:
    """``value[mask]`` of a (rows, tokens) mask over (rows, tokens, width) that holds at ``chosen`` places."""
    places = [machine.new((chosen,), "int64", "nonzero") for _ in mask.shape]
    out = machine.new((chosen, value.shape[-1]), value.dtype, "index.Tensor")
    return machine.record(out, (value,), tuple(places), _index_backward, value.shape)


def _index_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    """Zeros, added to in place in sorted order (TensorAdvancedIndexing.cpp:index_backward; Indexing.cu:

    index_put_with_sort_kernel).
    """
    out = machine.new(node.meta, grad.dtype, "new_zeros")
    number = saved[0].numel
    held: list[tuple[str, Count]] = [] if grad.contiguous else [("contiguous values", grad.nbytes)]
    held += [(name, 8 * number) for name in ("linearIndex", "sorted_indices", "orig_indices", "range")]
    machine.scratches([*held, ("cub radix sort", radix_sort(number, 8, 8))])
    return (out,)


def rows_by_index(machine: Machine, table: Value, places: Value) -> Value:
    """``table[places]``: a row of the table for each place."""
    out = machine.new((*places.shape, *table.shape[1:]), table.dtype, "index.Tensor")
    return machine.record(out, (table,), (places,), _index_backward, table.shape)
