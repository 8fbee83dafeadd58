"""Whether values are what an optimizer's constructor takes: of the kind of its default, and no size below what it can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memcalc.errors import InputError
from memcalc.tensors import itemsize

UNSET: Mapping[str, Any] = {
    "foreach": False, "fused": False, "beta1": 0.9, "lr": 1e-3, "clipping_threshold": 1.0, "betas": (0.9, 0.999),
    "memory_save_mode": "", "mu_dtype": "", "precond_dtype": "", "reduced_precision_dtype": "", "grafting_config": "",
    "iterate_averaging_config": "",
}  # fmt: skip
"""Of options whose default may be None, a value of the kind that they take."""
FROM_ONE = frozenset({"rank", "block_size", "slice_p", "dim", "n_heads", "max_preconditioner_dim"})
"""Sizes that something is divided by, or that is made of so many; other whole numbers may be 0."""
SIGNED = frozenset({"flatten_start_dim", "flatten_end_dim"})
"""Whole numbers that may count from the end."""
NUMBERS, TRUTHS = frozenset({"lr", "eps", "weight_decay", "betas"}), frozenset({"maximize", "differentiable"})
"""Options that change no byte and that nearly every constructor has."""


def typed(key: str, value: Any, default: Any, path: str, *, nullable: bool = False) -> Any:
    """The value of an option, as the constructor has it.

    Args:
        key: the option.
        value: as given.
        default: the library's.
        path: what errors call it.
        nullable: whether it may be None though its default is not.

    Raises:
        InputError: it is of another kind than the default, or a number below what the option can be.
    """
    usual = f"the default is {default!r}"
    kind = UNSET.get(key) if default is None else default
    if kind is None or (value is None and (nullable or default is None)):
        return value
    if isinstance(kind, tuple):
        return _listed(value, kind, path, usual)
    number = isinstance(kind, float) and isinstance(value, int) and not isinstance(value, bool)
    if not number and (not isinstance(value, type(kind)) or isinstance(value, bool) != isinstance(kind, bool)):
        raise InputError(path, value, f"is not {_noun(kind)}", usual)
    sized = isinstance(kind, int | float) and not isinstance(kind, bool) and key not in SIGNED
    if sized and value < (least := int(key in FROM_ONE)):
        raise InputError(path, value, f"is below {least}", usual)
    if key.endswith("_dtype"):
        itemsize(value, path)
    return float(value) if number else value


def _listed(value: Any, kind: Sequence[Any], path: str, usual: str) -> Any:
    """A list as a tuple, which neither JSON nor YAML knows: of words, or of as many numbers as the default has."""
    if not isinstance(value, list | tuple):
        raise InputError(path, value, "is not a list", usual)
    if isinstance(kind[0], str):
        if not all(isinstance(each, str) for each in value):
            raise InputError(path, value, "is not a list of words", usual)
    elif len(value) != len(kind) or not all(each is None or _is_number(each) for each in value):
        raise InputError(path, value, f"is not a list of {len(kind)} numbers", usual)
    return tuple(value)


def check_common(key: str, value: Any, path: str) -> None:
    """Refuse text and truth values where a number is meant, and for betas what is no list, though no byte hangs on it: the
    constructor would refuse them.

    Raises:
        InputError: one.
    """
    if key == "betas" and value is not None and not _is_numbers(value):
        raise InputError(
            path, value, "is not a list of numbers", "give one, as [0.9, 0.95], or leave it out; it changes no byte"
        )
    if key in TRUTHS and not isinstance(value, bool):
        raise InputError(path, value, "is not true or false", "leave it out; it changes no byte")
    if key in NUMBERS and value is not None and not _is_number(value) and not _is_numbers(value):
        raise InputError(path, value, "is not a number", "give one, as 1e-4, or leave it out; it changes no byte")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_number(each) or each is None for each in value)


def _noun(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(type(kind), "a word")
