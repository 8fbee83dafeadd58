"""Rows chosen by masks and indices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count
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
    return (machine.new(node.meta, grad.dtype, "new_zeros"),)


def rows_by_index(machine: Machine, table: Value, places: Value) -> Value:
    """``table[places]``: a row of the table for each place."""
    out = machine.new((*places.shape, *table.shape[1:]), table.dtype, "index.Tensor")
    return machine.record(out, (table,), (places,), _index_backward, table.shape)
