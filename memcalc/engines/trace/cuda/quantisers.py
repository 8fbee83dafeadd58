"""What quantises caches, as CUDA runs it: where a trace would see an operator whole, fail a check of types, or lack a value.

source: optimum-quanto 0.2.7 optimum/quanto; hqq 0.2.8.post1 hqq/core
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def opened(kind: str, mode: Any) -> Iterator[None]:
    """Within the block, what quantises a cache of that kind runs operator by operator under a mode of fake tensors.

    Other kinds of caches change nothing, nor does a package that is not there, which the cache itself asks for.
    """
    make = _OPENED.get(kind)
    try:
        changes = [] if make is None else make(mode)
    except ImportError:
        changes = []
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changes]
    for owner, name, changed in changes:
        setattr(owner, name, changed)
    try:
        yield
    finally:
        for owner, name, known in before:
            setattr(owner, name, known)


Changes = list[tuple[Any, str, Any]]
"""(a class or a namespace, an attribute, what stands in its place)."""


def _quanto(mode: Any) -> Changes:
    from optimum.quanto.tensor.packed import PackedTensor
    from optimum.quanto.tensor.weights.qbits import WeightQBitsTensor

    begin, operators = WeightQBitsTensor.__init__, torch.ops.quanto

    def packing(
        self: Any, qtype: Any, axis: Any, group: Any, size: Any, stride: Any, data: Any, scale: Any, shift: Any, *more: Any
    ) -> None:
        if not isinstance(data, PackedTensor):  # which asks for a tensor that is nothing but one (tensor/weights/qbits.py)
            data = PackedTensor.pack(data, qtype.bits)
        begin(self, qtype, axis, group, size, stride, data, scale, shift, *more)

    for name in ("quantize_affine", "unpack"):  # looked up once, so that the namespace holds them
        getattr(operators, name)
    return [(WeightQBitsTensor, "__init__", packing), (operators, "quantize_affine", _affine), (operators, "unpack", _unpacked)]


def _affine(base: Tensor, bits: int, axis: int, group_size: int, scale: Tensor, shift: Tensor) -> Tensor:
    """An operator of Python's, of whose parts each is an allocation (library/quantize.py:quantize_affine)."""
    from optimum.quanto.tensor.grouped import group

    groups = group(base, axis=axis, group_size=group_size)
    levels: Tensor = ((groups + shift) / scale).round()
    return levels.clamp(0, 2**bits - 1).to(torch.uint8)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """One kernel, which takes its result alone (library/extensions/cuda/unpack.cu:allocate_output)."""
    return packed.new_empty((packed.shape[0] * (8 // bits), *packed.shape[1:]))


def _hqq(mode: Any) -> Changes:
    from hqq.core.quantize import Quantizer

    # without its inference mode, which fake tensors have no part in, and in which the same memory is taken
    solve: Callable[..., Any] = Quantizer.optimize_weights.__wrapped__

    def answered(*args: Any, **kwargs: Any) -> Any:
        """The solver's error falls at each turn (optimize.py:optimize_weights_proximal_legacy), which all take the same."""
        before, mode.answering = mode.answering, True
        try:
            return solve(*args, **kwargs)
        finally:
            mode.answering = before

    return [(Quantizer, "optimize_weights", staticmethod(answered))]


_OPENED: dict[str, Callable[[Any], Changes]] = {"quantized-quanto": _quanto, "quantized-hqq": _hqq}
