"""What a trace need not spend: values for weights nobody reads, and the collector's walks over what was there before."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor


@contextlib.contextmanager
def no_values() -> Iterator[None]:
    """``torch.nn.init``'s functions give a fake tensor back as it is: there is nothing to fill.

    Only for building a module, which no tape records: a function that fills in steps would have its temporaries. What has no
    name there, and a tensor's own ``normal_``, runs as ever. transformers keeps the functions in a table of its own
    (transformers src/transformers/initialization.py:TORCH_INIT_FUNCTIONS).
    """
    tables: list[dict[str, Any]] = [vars(torch.nn.init)]
    transformers = sys.modules.get("transformers.initialization")
    tables += [table] if isinstance(table := getattr(transformers, "TORCH_INIT_FUNCTIONS", None), dict) else []
    before = [(table, name, table[name]) for table in tables for name in table if name in FILLERS]
    try:
        for table, name, function in before:
            table[name] = _spared(function)
        yield
    finally:
        for table, name, function in before:
            table[name] = function


FILLERS = frozenset(
    {
        "uniform_", "normal_", "trunc_normal_", "constant_", "ones_", "zeros_", "xavier_uniform_", "xavier_normal_",
        "kaiming_uniform_", "kaiming_normal_",
    }
)  # fmt: skip
"""Those that fill whatever tensor they are given, and read no value of it."""


def _spared(function: Callable[..., Any]) -> Callable[..., Any]:
    fans = function.__name__.startswith(("xavier", "kaiming"))  # which refuse a vector

    @wraps(function)
    def fill(*args: Any, **kwargs: Any) -> Any:
        tensor = args[0] if args else kwargs.get("tensor")
        return tensor if type(tensor) is FakeTensor and (tensor.ndim > 1 or not fans) else function(*args, **kwargs)

    return fill


@contextlib.contextmanager
def own_garbage() -> Iterator[None]:
    """No collection but those asked for, and none of what was there before: when cycles die hangs on the trace alone."""
    running, untouched = gc.isenabled(), not gc.get_freeze_count()
    gc.disable()
    if untouched:
        gc.freeze()
    try:
        yield
    finally:
        if untouched:
            gc.unfreeze()
        if running:
            gc.enable()
