"""Python kernels put over a dispatch key of aten operators for a while, and taken off again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def operator(name: str) -> Any:
    """The aten operator of that name: ``mm``, ``softmax.int``.

    >>> operator("softmax.int")._schema.overload_name
    'int'
    """
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def composite(name: str, *args: Any) -> Any:
    """The C++ function that a composite operator is made of.

    Not ``decompose()``, which prefers decompositions written in Python for compilers: dropout's copies its input where the
    C++ function gives it back (pytorch torch/_decomp/decompositions.py:dropout, Dropout.cpp:_dropout).
    """
    return operator(name)._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args)


@contextlib.contextmanager
def override(kernels: Mapping[str, Callable[..., Any]], *keys: str) -> Iterator[None]:
    """Register each kernel at each dispatch key; what was there before is back at the end of the block.

    An operator that this version of torch does not have is passed over.
    """
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered kernel.*")
            for name, function in kernels.items():
                if _exists(name):
                    for key in keys:
                        library.impl(name, function, key)  # type: ignore[no-untyped-call]
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def _exists(name: str) -> bool:
    base, _, overload = name.partition(".")
    return hasattr(torch.ops.aten, base) and hasattr(getattr(torch.ops.aten, base), overload or "default")
