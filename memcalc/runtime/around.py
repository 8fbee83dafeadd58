"""What is known of a module before it is trained, and what stands around its forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from memcalc.runtime.module import kind_of_owner
from memcalc.runtime.optimizers import Trained


def trained_parameters(module: Any) -> list[Trained]:
    """The parameters that receive a gradient, each once, with the operator that reads it."""
    found: dict[int, Trained] = {}
    for prefix, owner in module.named_modules():
        for leaf, param in owner.named_parameters(recurse=False):
            if param.requires_grad:
                name = f"{prefix}.{leaf}" if prefix else leaf
                found.setdefault(id(param), Trained(name, param, kind_of_owner(owner, leaf, param.dim()) or "other"))
    return list(found.values())


def all_zeros(module: Any) -> list[str]:
    """Names of the trainable parameters that are all zeros: some optimizers keep less for them."""
    return [name for name, p in module.named_parameters() if p.requires_grad and not p.flatten()[:1].any() and not p.any()]


def counts_of(module: Any) -> tuple[int, int, int]:
    """Elements of all parameters and of those that train, and how many tensors they are."""
    params = list(module.parameters())
    return sum(p.numel() for p in params), sum(p.numel() for p in params if p.requires_grad), len(params)


def floating_dtype(module: Any) -> str:
    """The dtype floating-point inputs take: that of the first parameter."""
    for param in module.parameters():
        if param.is_floating_point():
            return str(param.dtype).removeprefix("torch.")
    return "float32"


@contextlib.contextmanager
def waiting(module: Any, *, final: bool) -> Iterator[None]:
    """Reduce gradients across ranks with the last micro-batch alone, as accumulation is meant to be run under DDP."""
    # DeepSpeed's engine counts micro-batches by itself, and refuses both at once
    no_sync = None if type(module).__name__ == "DeepSpeedEngine" else getattr(module, "no_sync", None)
    with no_sync() if callable(no_sync) and not final else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def only_kernel(asked: str) -> Iterator[None]:
    """Only the kernel that was asked for; torch's own choice for ``auto``, and none of them for ``eager``."""
    if asked in ("auto", "eager"):
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }  # fmt: skip
    with sdpa_kernel([kernels[asked]]):
        yield
