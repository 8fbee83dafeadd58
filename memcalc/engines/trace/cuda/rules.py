"""What CUDA's kernels give where fake tensors have no rule, or one that is too narrow.

* Grouped matrix multiplication, on which transformers runs mixtures of experts: CUDA takes FP32, FP16 and BF16, the rule for
  shapes BF16 alone. No routing shows in its bytes: rows are token-expert pairs, however they fall to the experts.
* Fused SGD and Adagrad, which update in place and give nothing back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from memcalc.engines.trace.cuda.overrides import override
from memcalc.kernels.grouped import padded_row


def grouped_mm(
    self: Tensor, mat2: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The result of ``_grouped_mm`` (pytorch GroupedBlas.cpp:_grouped_mm_cuda).

    Shapes: two stacks ``[g, m, k] × [g, k, n]``; a stack on one side, ``[m, k] × [g, k, n]`` and ``[g, m, k] × [k, n]``; none,
    ``[m, k] × [k, n]``, whose groups share k and give ``[g, m, n]``.
    """
    if self.dim() == 2 and mat2.dim() == 2:
        assert offs is not None
        size = [offs.shape[0], self.shape[0], mat2.shape[1]]
    elif self.dim() == 2:
        size = [self.shape[0], mat2.shape[-1]]
    elif mat2.dim() == 2:
        size = [self.shape[1], mat2.shape[1]]
    else:
        size = [self.shape[0], self.shape[1], mat2.shape[-1]]
    dtype = out_dtype or self.dtype
    row = int(padded_row(size[-1], dtype.itemsize))
    strides = [row, 1] if len(size) == 2 else [size[1] * row, row, 1]
    return self.new_empty_strided(size, strides, dtype=dtype)


def in_place(*_: Any, **__: Any) -> None:
    """A kernel that writes to what it is given (pytorch FusedSgdKernel.cu, FusedAdagradKernel.cu)."""


RULES: dict[str, Callable[..., Any]] = {
    "_grouped_mm": grouped_mm,
    **{f"_fused_{name}_{form}": in_place for name in ("sgd", "adagrad") for form in ("", ".tensor_lr")},
}
"""Operator to its rule, at the ``Meta`` dispatch key."""


@contextlib.contextmanager
def cuda_rules() -> Iterator[None]:
    """These rules hold until the end of the block."""
    with override(RULES, "Meta"):
        yield
