"""A live module on fake tensors, and back: its own tensors are put aside for the trace and returned untouched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from memcalc.engines.trace.fake import CudaFakeMode
from memcalc.errors import InputError


@contextlib.contextmanager
def faked(module: Any, mode: CudaFakeMode) -> Iterator[None]:
    """The module's parameters and buffers as fake tensors of the same shape, strides and dtype; tied ones stay tied.

    Raises:
        InputError: a tensor that cannot be faked: nested, or a lazy parameter.
    """
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    made: dict[int, Any] = {}
    try:
        for prefix, owner in list(module.named_modules()):
            # its plain attributes too: forwards that checkpointing wraps, tensors that a forward keeps
            before += [(kept, dict(kept)) for kept in (vars(owner), owner._parameters, owner._buffers, owner._modules)]
            for tensors in (owner._parameters, owner._buffers):
                for leaf, tensor in tensors.items():
                    if tensor is not None and not isinstance(tensor, FakeTensor):
                        if id(tensor) not in made:
                            made[id(tensor)] = _fake(tensor, mode, f"{prefix}.{leaf}".lstrip("."))
                        tensors[leaf] = made[id(tensor)]
        yield
    finally:
        for tensors, own in before:
            tensors.clear()
            tensors.update(own)


def _fake(tensor: torch.Tensor, mode: CudaFakeMode, name: str) -> Any:
    """One tensor, on the CPU, where a module is before it is moved; a parameter stays one."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        rule = "is a nested or sparse tensor, whose bytes depend on its values"
        raise InputError(f"model.{name}", str(tensor.layout), rule, "register a dense tensor")
    if torch.nn.parameter.is_lazy(tensor):
        rule = "is a lazy parameter that has no shape yet"
        raise InputError(f"model.{name}", type(tensor).__name__, rule, "run a batch through the module first")
    with mode:
        plain = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(plain, requires_grad=tensor.requires_grad)
        return plain.requires_grad_(tensor.requires_grad)
