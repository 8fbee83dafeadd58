"""A step as a script: which buffers it makes and lets go, in order, in a notation of one line a loop.

``+name`` makes a buffer under a Python name, and what the name held before dies; ``-name`` lets go of it. A name lives on
from tensor to tensor until it is bound again, and dies with the function:

    +root +denom -root          # denom = sqrt(v) / c: the last tensor's denom dies once this one's is made

``=name:other`` gives a name what another holds, as an assignment does that comes later than the making. Else a colon tells
how large a buffer is: how many elements, of which dtype (``:np`` unless told).

    n  the parameter's           r, c  its row and column means     s  as many as matrices are stacked     1  one
    p  the parameter's dtype     g  the gradient's     w  the gradient's, halves widened     d, f, h, b  8, 4, 2 and 1 bytes

A number in front multiplies. In a section over lists (``together``) ``+`` makes one for every tensor, ``*`` one as long as
all of them together and ``!`` one alone; ``-name*`` lets go of every name that begins so. ``%`` is what a kernel needs while
a tensor is reduced whole (``%n``), over its last dimension (``%r``) or the one before (``%c``), while a vector of row means
is (``%v``), or while ``_foreach_norm`` takes the norms of a list (``%norm``); behind a size, ``+name:rg%r``, it follows each
birth of a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from memcalc.arrays import Count, product
from memcalc.kernels.reduction import Chip, contiguous
from memcalc.optimizers.base import Param
from memcalc.tensors import itemsize

Sign = Literal["+", "-", "*", "!", "%", "="]


class Op(NamedTuple):
    """``times`` equal buffers made under a name, or what a name holds let go of."""

    sign: Sign
    name: str
    nbytes: Count = 0
    times: Count = 1
    source: str = ""
    """Of an assignment: the other name. Of a birth: the reduction that fills it."""


Body = Callable[[Param], Iterable[Op]]


class Section(NamedTuple):
    """A loop over tensors (``in_turn``), or code over lists of them."""

    in_turn: bool
    body: Body


Size = Callable[[Param], Count]
_DTYPES = {"d": 8, "f": 4, "h": 2, "b": 1}


def in_turn(notation: str | Callable[[Param], str], **sizes: Size) -> Section:
    """A loop that takes one tensor after another; ``sizes`` are those the letters cannot say, by their own name."""
    return Section(True, _body(notation, sizes))


def together(notation: str | Callable[[Param], str], **sizes: Size) -> Section:
    """Code over lists with one buffer for every tensor."""
    return Section(False, _body(notation, sizes))


def _body(notation: str | Callable[[Param], str], sizes: Mapping[str, Size]) -> Body:
    def body(param: Param) -> Iterable[Op]:
        text = notation if isinstance(notation, str) else notation(param)
        return [
            Op(sign, name, _size(code, param, sizes), source=source) if sign in "+*!" else Op(sign, name, source=source)
            for sign, name, code, source in tokens(text)
        ]

    return body


@lru_cache(maxsize=4096)
def tokens(notation: str) -> tuple[tuple[Sign, str, Any, str], ...]:
    """(sign, name, size's code, source) of each token.

    >>> tokens("+a:2nf%n -a")
    (('+', 'a', ('2', 'n', 'f'), 'n'), ('-', 'a', None, ''))
    """
    found: list[tuple[Sign, str, Any, str]] = []
    for word in notation.split():
        sign, rest = word[0], word[1:]
        name, _, code = rest.partition(":")
        assert sign in "+-*!%=", f"{word!r} is no token"
        code, _, source = code.partition("%") if sign in "+*!" else ("", "", code)
        found.append((sign, name, _code(code or "np") if sign in "+*!" else None, source))  # type: ignore[arg-type]
    return tuple(found)


def _code(code: str) -> tuple[str, str, str] | str:
    found = re.fullmatch(r"(\d*)([nrcs1])([pgwdfhb])", code)
    if found is None:
        return code
    times, elements, dtype = found.groups()
    return times, elements, dtype


def _size(code: tuple[str, str, str] | str, param: Param, sizes: Mapping[str, Size]) -> Count:
    if isinstance(code, str):
        return sizes[code](param)
    times, elements, dtype = code
    return int(times or 1) * ELEMENTS[elements](param) * width(dtype, param)


def width(letter: str, param: Param) -> int:
    """Bytes of one element."""
    if letter == "p":
        return itemsize(param.dtype)
    if letter == "g":
        return itemsize(param.grad_dtype)
    if letter == "w":
        return max(4, itemsize(param.grad_dtype))
    return _DTYPES[letter]


ELEMENTS: dict[str, Size] = {
    "n": lambda p: p.numel,
    "r": lambda p: product(p.shape[:-1]),
    "c": lambda p: product(p.shape[:-2]) * p.shape[-1],
    "s": lambda p: product(p.shape[:-2]),
    "1": lambda p: 1,
}


CHUNK = 65536
"""Elements a block of a foreach kernel takes (pytorch aten/src/ATen/native/cuda/MultiTensorApply.cuh:kChunkSize)."""


def reduced(which: str, param: Param, chip: Chip) -> tuple[Count, Count]:
    """(partial results, semaphores) of one of the reductions a script may name, accumulated in float32."""
    if which == "n":
        return contiguous((param.numel,), None, 4, chip)
    shape, dim = {"r": (param.shape, -1), "c": (param.shape, -2), "v": (param.shape[:-1], -1)}[which]
    return contiguous(shape, [dim], 4, chip)
