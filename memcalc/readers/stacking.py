"""Many configs of one structure as one config whose numbers are int64 arrays: what a sweep builds its models from.

Two configs have one structure when everything but their whole numbers agrees: the family, its switches and names, what is
left out, and every list. Then the family's builder makes the same tree of layers for both, and one build over arrays
stands for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

from pydantic import BaseModel

Structure: TypeAlias = tuple[Hashable, ...]
_NUMBER = "a whole number"


def structure_key(config: BaseModel) -> Structure:
    """What must agree for configs to be stacked: a hashable summary of everything in one but its whole numbers.

    >>> from memcalc.families.llama import LlamaConfig
    >>> structure_key(LlamaConfig(hidden_size=64)) == structure_key(LlamaConfig(hidden_size=128))
    True
    >>> structure_key(LlamaConfig()) == structure_key(LlamaConfig(num_key_value_heads=8))
    False
    """
    return (type(config), *((name, _structure(value)) for name, value in _values(config)))


def stack_configs(configs: Sequence[BaseModel]) -> Any:
    """One config of the same class, each whole number an int64 array of shape ``(len(configs),)``.

    Args:
        configs: at least one, validated, all of one :func:`structure_key`.
    """
    assert configs, "nothing to stack"
    first = configs[0]
    key = structure_key(first)
    assert all(structure_key(config) == key for config in configs), "configs of several structures cannot be stacked"
    return _stacked(configs)


def _stacked(members: Sequence[BaseModel]) -> Any:
    import numpy as np  # whoever stacks configs evaluates arrays

    first = members[0]
    columns: dict[str, Any] = {}
    for name, value in _values(first):
        column = [getattr(member, name) for member in members]
        if _is_number(value):
            columns[name] = np.array(column, dtype=np.int64)
        elif isinstance(value, BaseModel):
            columns[name] = _stacked(column)
        else:
            columns[name] = value
    return type(first).model_construct(_fields_set=set(first.model_fields_set), **columns)


def _values(config: BaseModel) -> list[tuple[str, Any]]:
    return [(name, getattr(config, name)) for name in type(config).model_fields]


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _structure(value: Any) -> Hashable:
    """A value's part in the structure: a lone whole number says only that it is one."""
    if _is_number(value):
        return _NUMBER
    return structure_key(value) if isinstance(value, BaseModel) else _frozen(value)


def _frozen(value: Any) -> Hashable:
    """The value itself in a hashable form that tells ``1`` from ``True`` and from ``1.0``."""
    if isinstance(value, BaseModel):
        return (type(value), *(_frozen(item) for _, item in _values(value)))
    if isinstance(value, list | tuple):
        return ("list", *(_frozen(item) for item in value))
    if isinstance(value, dict):
        return ("mapping", *sorted(((str(key), _frozen(item)) for key, item in value.items()), key=lambda pair: pair[0]))
    return (type(value).__name__, value)
