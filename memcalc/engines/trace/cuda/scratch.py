"""What a CUDA kernel allocates inside one operator, beyond its results: born and gone before the operator returns.

A formula is a function of the operator's arguments by name, its results and a :class:`Behaviour`; it lists the buffers that
are alive together when the operator holds most. Where only a library knows (cuDNN's heuristics, cub's temporary storage), the
size is an upper figure and says so: ``bound=True``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memcalc.engines.trace.cuda.checked import CHECKED
from memcalc.engines.trace.cuda.schema import bound as bind
from memcalc.kernels import sorting
from memcalc.kernels.behaviour import Behaviour


@dataclass(frozen=True)
class Scratch:
    """One buffer inside an operator."""

    name: str
    nbytes: int
    bound: bool = False
    """The true size is a library's own business; this is meant as its upper end."""


Arguments = dict[str, Any]
Formula = Callable[[Arguments, Any, Behaviour], list[Scratch]]


@dataclass(frozen=True)
class Entry:
    """A formula and where it was read."""

    formula: Formula
    source: str


REGISTRY: dict[str, Entry] = {}
"""By aten name without the overload."""
_MODULES = ("reduce", "attention", "index", "norm", "matmul", "convolution", "pool", "loss", "pointwise")


def scratch(*names: str, source: str) -> Callable[[Formula], Formula]:
    """Register the formula of one or several operators.

    Raises:
        ValueError: one of them has a formula, or is listed as needing none.
    """

    def register(formula: Formula) -> Formula:
        for name in names:
            if name in REGISTRY or name in CHECKED:
                raise ValueError(f"{name}: has a formula already, or is listed in CHECKED")
            REGISTRY[name] = Entry(formula, source)
        return formula

    return register


def load() -> dict[str, Entry]:
    """The registry with every formula in it."""
    for module in _MODULES:
        importlib.import_module(f"memcalc.engines.trace.cuda.scratch_{module}")
    importlib.import_module("memcalc.engines.trace.cuda.rnn")
    return REGISTRY


def scratch_of(func: Any, args: Any, kwargs: Any, out: Any, behaviour: Behaviour) -> list[Scratch] | None:
    """The scratch of one call.

    Args:
        func: the aten overload.
        args: its positional arguments, fake or real.
        kwargs: its keyword arguments.
        out: its results.
        behaviour: the GPU and software.

    Returns:
        The buffers over 0 bytes; an empty list where the source was read and allocates nothing; None where it was not read.
    """
    name = func._schema.name.removeprefix("aten::")
    if not REGISTRY:
        load()
    entry = REGISTRY.get(name)
    if entry is None:
        return [] if name in CHECKED else None
    return [buffer for buffer in entry.formula(bind(func, args, kwargs), out, behaviour) if buffer.nbytes > 0]


def nbytes(tensor: Any, itemsize: int | None = None) -> int:
    """Bytes of a tensor's elements, at another item size if given."""
    return tensor.numel() * (tensor.element_size() if itemsize is None else itemsize)  # type: ignore[no-any-return]


def contiguous_copy(name: str, tensor: Any) -> list[Scratch]:
    """The copy ``tensor.contiguous()`` makes, if it makes one."""
    return [] if tensor is None or tensor.is_contiguous() else [Scratch(f"contiguous {name}", nbytes(tensor))]


def round_up(value: int, multiple: int) -> int:
    """The next multiple.

    >>> round_up(129, 128), round_up(128, 128)
    (256, 128)
    """
    return -(-value // multiple) * multiple


def cub_sort(elements: int, key: int, value: int) -> Scratch:
    """The cub radix sort's temporary storage."""
    return Scratch("cub radix sort", int(sorting.cub_sort(elements, key, value)), bound=True)


def cub_scan(elements: int, item: int) -> Scratch:
    """The cub scan's or reduction's temporary storage."""
    return Scratch("cub scan", int(sorting.cub_scan(elements, item)), bound=True)
