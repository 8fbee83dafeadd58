"""Implementations other than transformers', one file each, found by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from memcalc.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from memcalc.implementations.base import Implementation

USUAL = "transformers"
KNOWN = ("litgpt", "megatron", "nanogpt", "timm", "torchtitan", "torchtune")
"""Each has a file of its name."""


@cache
def load_implementation(name: str) -> Implementation:
    """The implementation of that name, other than transformers'.

    Raises:
        InputError: none of that name is modelled.
    """
    if name not in KNOWN:
        near = did_you_mean(name, (USUAL, *KNOWN))
        raise InputError("implementation", name, "is not an implementation whose layers are modelled", near)
    found: Implementation = import_module(f"memcalc.implementations.{name}").IMPLEMENTATION
    return found
