"""Backward formulas that work in place on CUDA, and out of place where they meet tensor subclasses or a dispatch mode.

C++ asks ``areAnyTensorSubclassLike`` (pytorch ATen/TensorSubclassLikeUtils.h), to which fake tensors are subclasses like any
other, and takes a road with one temporary more for each step. Here such a step is put back in place: on the tensor that the
same formula has just made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

aten = torch.ops.aten
BCE = "BinaryCrossEntropyWithLogitsBackward0"
_EVENLY = ("MaxBackward1", "MinBackward1", "MedianBackward0", "NanmedianBackward0")
_SELECTED = (
    "TopkBackward0", "SortBackward0", "SortBackward1", "MaxBackward0", "MinBackward0", "MedianBackward1", "NanmedianBackward1",
    "KthvalueBackward0", "ModeBackward0",
)  # fmt: skip

IN_PLACE: dict[Any, tuple[Any, tuple[str, ...], str]] = {
    aten.logical_and.default: (
        aten.logical_and_.default, ("ClampBackward0", "ClampBackward1", *_EVENLY),
        "FunctionsManual.cpp:clamp_backward, evenly_distribute_backward",
    ),
    aten.scatter.src: (
        aten.scatter_.src, _SELECTED, "native/ReduceOps.cpp:value_selecting_reduction_backward_symint",
    ),
    aten.sub.Tensor: (aten.sub_.Tensor, (BCE,), "FunctionsManual.cpp:binary_cross_entropy_with_logits_backward"),
    aten.mul.Tensor: (aten.mul_.Tensor, (BCE,), "FunctionsManual.cpp:binary_cross_entropy_with_logits_backward"),
}  # fmt: skip
"""Operator: what stands in its place, within which nodes of autograd, and where that is written."""


def in_place(func: Any, args: Sequence[Any]) -> Any:
    """The operator that CUDA's formula calls: the same one, unless a node of autograd runs that works in place.

    >>> in_place(aten.mul.Tensor, ()) is aten.mul.Tensor
    True
    """
    node: Any = torch._C._current_autograd_node()
    if node is None:
        return func
    instead, nodes, _ = IN_PLACE[func]
    name = node.name()
    if name not in nodes:
        return func
    if name == BCE and (torch.is_grad_enabled() or _same_memory(args[0], node._saved_pos_weight)):
        return func  # to be differentiated again; or pos_weight · target, which is a temporary of its own
    return instead


def _same_memory(tensor: Any, other: Any) -> bool:
    return other is not None and tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
