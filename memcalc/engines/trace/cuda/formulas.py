"""Formulas of backward that scatter into zeros of their own: in place on real tensors, out of place where a mode is on.

C++ asks ``areAnyTensorSubclassLike`` (pytorch aten/src/ATen/TensorSubclassLikeUtils.h), and under a dispatch mode all are.
The zeros are a formula's own, so that writing to them is the same to everybody but the allocator.
"""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

FORMULAS: dict[Any, tuple[Any, frozenset[str]]] = {
    # FunctionsManual.cpp:index_backward
    aten.index_put.default: (aten.index_put_.default, frozenset({"IndexBackward0"})),
    # native/TensorAdvancedIndexing.cpp:gather_backward; native/ReduceOps.cpp:cummaxmin_backward
    aten.scatter_add.default: (
        aten.scatter_add_.default, frozenset({"GatherBackward0", "CummaxBackward0", "CumminBackward0"}),
    ),
    # native/TensorAdvancedIndexing.cpp:index_select_backward_symint
    aten.index_add.default: (aten.index_add_.default, frozenset({"IndexSelectBackward0"})),
    # native/TensorAdvancedIndexing.cpp:masked_select_backward
    aten.masked_scatter.default: (aten.masked_scatter_.default, frozenset({"MaskedSelectBackward0"})),
    # FunctionsManual.cpp:take_backward
    aten.put.default: (aten.put_.default, frozenset({"TakeBackward0"})),
    # native/TriangularOps.cpp:trace_backward_symint
    aten.index_fill.int_Tensor: (aten.index_fill_.int_Tensor, frozenset({"TraceBackward0"})),
}  # fmt: skip
"""Operator -> what real tensors call in its place, and the nodes whose formulas do."""


def as_real(func: Any) -> Any:
    """The operator that a formula calls on real tensors.

    >>> as_real(aten.put.default) is aten.put.default  # no node runs
    True
    """
    known = FORMULAS.get(func)
    if known is None:
        return func
    node: Any = torch._C._current_autograd_node()
    return known[0] if node is not None and node.name() in known[1] and not torch.is_grad_enabled() else func
