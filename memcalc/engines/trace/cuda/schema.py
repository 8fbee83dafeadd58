"""The arguments of an aten call by the names of its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bound(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every argument of the schema by name, defaults filled in.

    >>> import torch
    >>> bound(torch.ops.aten.sum.dim_IntList, (torch.ones(2), [0]))["keepdim"]
    False
    """
    names = func._schema.arguments
    given = dict(zip((a.name for a in names), args, strict=False)) | dict(kwargs or {})
    return {a.name: a.default_value for a in names if a.has_default_value()} | given
