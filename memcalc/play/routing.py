"""What sends tokens to experts: the best scores, tokens sorted by expert, counts of them, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memcalc.arrays import Count, both, ceil_div, not_, where
from memcalc.kernels.sorting import RANGE, SMALL_SORT, cub_scan, cub_sort
from memcalc.play.graph import Gradients, Node
from memcalc.play.pointwise import _binary
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine


def topk(machine: Machine, value: Value, count: Count) -> tuple[Value, Value]:
    """The ``count`` greatest of the last dimension and their places, which are saved."""
    shape = (*value.shape[:-1], count)
    out, places = machine.new(shape, value.dtype, "topk"), machine.new(shape, "int64", "topk")
    machine.scratches(_topk_scratch(value))
    machine.record(out, (value,), (places,), _chosen_backward, value.shape)
    return out, places


def _topk_scratch(value: Value) -> list[tuple[str, Count]]:
    """Few and long slices are counted by block (native/cuda/TensorTopK.cu: sbtopk, mbtopk, should_use_mbtopk)."""
    length, held = value.shape[-1], []
    if not value.contiguous:
        held.append(("contiguous self", value.nbytes))
    slices = value.numel // length
    alone = both(slices > 400, length < 20000) | (length < 400)
    blocks = slices * ceil_div(length, 2048)
    held.append(("digit counts", where(not_(alone), blocks * 256 * 2 + blocks * 8 + slices * 24, 0)))
    return held


def _chosen_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    # FunctionsManual.cpp:value_selecting_reduction_backward: zeros, scattered into in place
    return (machine.new(node.meta, grad.dtype, "new_zeros"),)


def greatest(machine: Machine, value: Value, *, keep: bool = True) -> tuple[Value, Value]:
    """The greatest of the last dimension, which goes to 1 or away, and its place, which is saved."""
    shape = (*value.shape[:-1], 1) if keep else value.shape[:-1]
    out, places = machine.new(shape, value.dtype, "max.dim"), machine.new(shape, "int64", "max.dim")
    machine.record(out, (value,), (places,), _chosen_backward, value.shape)
    return out, places


def divided_in_place(machine: Machine, value: Value, other: Value) -> Value:
    """``value /= other``: a copy of what was there is saved for the gradient of ``other``."""
    copy = machine.like(value, "clone") if machine.wants(other) else None
    out = Value(value.storage, value.shape, value.dtype, value.order, value.view, value.gaps)
    return machine.record(out, (value, other), (other, copy), _divided_backward)


def _divided_backward(machine: Machine, node: Node, saved: Any, grad: Value) -> Gradients:
    other, value = saved
    of_other = None
    if node.needs(1):  # FunctionsManual.cpp:div_tensor_other_grad: -grad * ((self / other) / other), from the right
        once = _binary(machine, value, other, "div.Tensor")
        twice = _binary(machine, once, other, "div.Tensor")
        minus = machine.like(grad, "neg")
        of_other = _binary(machine, minus, twice, "mul.Tensor")
        del minus, twice, once
    return _binary(machine, grad, other, "div.Tensor") if node.needs(0) else None, of_other


def sorted_with_places(machine: Machine, value: Value) -> tuple[Value, Value]:
    """``torch.sort`` of one dimension of whole numbers."""
    out, places = machine.new(value.shape, value.dtype, "sort"), machine.new(value.shape, "int64", "sort")
    number = value.shape[0]
    # native/cuda/SortStable.cu:launch_stable_sort_kernel, segmented_sort_large_segments
    many = number > SMALL_SORT
    machine.scratches(
        [
            ("indices", where(many, 8 * number, 0)),
            ("cub radix sort", where(many, cub_sort(number, value.itemsize, 8), 0)),
        ]
    )
    return out, places


def counted(machine: Machine, value: Value, bins: Count) -> Value:
    """``torch.histc``: how many fall into each of so many bins."""
    out = machine.new((bins,), value.dtype, "histc")
    machine.scratch(RANGE, "minimum and maximum")
    return out


def summed_up(machine: Machine, value: Value, dtype: str) -> Value:
    """``torch.cumsum`` of one dimension (native/cuda/ScanUtils.cuh:scan_dim)."""
    out = machine.new(value.shape, dtype, "cumsum")
    machine.scratch(cub_scan(value.numel, 8), "cub scan")
    return out


def inverse(machine: Machine, places: Value) -> Value:
    """Where each went: a range written to the places."""
    out = machine.like(places, "empty_like")
    machine.new(places.shape, "int64", "arange")
    return out
