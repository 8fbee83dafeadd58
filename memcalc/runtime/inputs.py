"""What a model is fed: named tensors of a shape and dtype, for each family and head, inferred or given.

A floating-point input follows the dtype the parameters are held in; token ids are drawn below ``high``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from memcalc.errors import NO_VALUE, InputError, did_you_mean
from memcalc.tensors import ITEMSIZE

FORM = "write it as x=float32[8,3,224,224] or ids=int64[2,128]<50257"
_SPEC = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<dtype>[a-z]\w*)\[(?P<shape>[\d,\s]*)\](?:<(?P<high>\d+))?\Z")
PLACED = "args"
"""Name of an input that is passed by place, not by name: ``args0``, ``args1``, …"""


class Input(NamedTuple):
    """One tensor.

    Attributes:
        name: the argument of forward.
        dtype: torch's dtype name; ``float`` follows the parameters.
        shape: the batch first.
        high: whole numbers are drawn from 0 up to below this.
        const: the one value to fill it with; None for random ones.
        first: (how many stand first in each row, a whole number that they are and the others are not); None for none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    high: int = 2
    const: float | None = None
    first: tuple[int, int] | None = None

    def text(self, floating: str = "float32") -> str:
        """As ``--input`` takes it.

        >>> Input("ids", "int64", (2, 8), 100).text()
        'ids=int64[2,8]<100'
        """
        dtype = floating if self.dtype == "float" else self.dtype
        bound = "" if dtype.startswith(("float", "bfloat", "bool")) or self.const is not None else f"<{self.high}"
        return f"{self.name}={dtype}[{','.join(map(str, self.shape))}]{bound}"


def parse_input(text: str, path: str = "--input") -> Input:
    """An input as it is written on the command line.

    Raises:
        InputError: not of that form, an unknown dtype, an empty dimension.

    >>> parse_input("x=float32[8,3,32,32]")
    Input(name='x', dtype='float32', shape=(8, 3, 32, 32), high=2, const=None, first=None)
    """
    match = _SPEC.match(text.replace(" ", ""))
    if match is None:
        raise InputError(path, text, "does not name an input", FORM)
    dtype = match["dtype"]
    if dtype not in ITEMSIZE:
        raise InputError(path, dtype, "is not a known dtype", did_you_mean(dtype, ITEMSIZE))
    sizes = [size for size in match["shape"].split(",") if size]
    shape = tuple(int(size) for size in sizes)
    if any(not 0 < size <= 2**40 for size in shape):
        raise InputError(path, text, "has a dimension that is not above 0 and below a trillion", FORM)
    return Input(match["name"], dtype, shape, int(match["high"] or 2))


def parse_inputs(texts: Iterable[str], path: str = "--input") -> list[Input]:
    """Several, each name once.

    Raises:
        InputError: a name given twice, or one that cannot be read.
    """
    found: dict[str, Input] = {}
    for text in texts:
        each = parse_input(text, path)
        if each.name in found:
            raise InputError(path, each.name, "is given twice", "give each input once")
        found[each.name] = each
    return list(found.values())


def inputs_of(given: Any) -> list[Input]:
    """What a person hands over as a batch: tensors, tensors by name, or texts; only shapes and dtypes are read.

    Raises:
        InputError: something that is none of these.

    >>> inputs_of([torch.zeros(2, 3)])[0].text(), inputs_of({"ids": torch.zeros(2, dtype=torch.int64)})[0].text()
    ('args0=float32[2,3]', 'ids=int64[2]<2')
    """
    if given is None:
        return []
    if isinstance(given, torch.Tensor | str):
        given = [given]
    named = given.items() if isinstance(given, Mapping) else ((f"{PLACED}{index}", one) for index, one in enumerate(given))
    found = []
    for name, one in named:
        if isinstance(one, Input):
            found.append(one)
        elif isinstance(one, torch.Tensor) and (one.is_nested or one.layout is not torch.strided):
            rule = "is a nested or sparse tensor, whose bytes depend on its values"
            raise InputError(f"inputs.{name}", str(one.layout), rule, "pad it to a dense tensor")
        elif isinstance(one, torch.Tensor):
            found.append(Input(str(name), str(one.dtype).removeprefix("torch."), tuple(one.shape)))
        elif isinstance(one, str):
            found.append(parse_input(one, "inputs"))
        else:
            raise InputError("inputs", type(one).__name__, "is neither a tensor nor a text", FORM)
    return found


def make_batch(inputs: Iterable[Input], device: str, floating: str, seed: int) -> dict[str, torch.Tensor]:
    """The tensors, on the device, from a generator of their own so that they are the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return {each.name: _filled(each, floating, generator).to(device) for each in inputs}


def _filled(each: Input, floating: str, generator: torch.Generator) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, floating if each.dtype == "float" else each.dtype)
    if each.const is not None:
        return torch.full(each.shape, each.const, dtype=dtype)
    if dtype is torch.bool:
        return torch.rand(each.shape, generator=generator) < 0.5
    if dtype.is_floating_point:
        return torch.randn(each.shape, generator=generator).to(dtype)
    drawn = torch.randint(0, each.high, each.shape, generator=generator).to(dtype)
    if each.first is None:
        return drawn
    number, value = each.first
    return torch.cat(
        [torch.full_like(drawn[:, :number], value), drawn[:, number:].masked_fill(drawn[:, number:] == value, 0)], 1
    )


def called(batch: Mapping[str, torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The batch as positional and named arguments of forward."""
    placed = [tensor for name, tensor in batch.items() if re.fullmatch(rf"{PLACED}\d+", name)]
    return placed, {name: tensor for name, tensor in batch.items() if not re.fullmatch(rf"{PLACED}\d+", name)}


def inferred(module: Any, batch: int, sequence: int, image: int, floating: str = "float") -> list[Input]:
    """What an unknown module reads, from the first layer that says so: tokens, features or an image.

    Raises:
        InputError: its first layer says nothing.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.Embedding):
            return [Input("args0", "int64", (batch, sequence), part.num_embeddings)]
        if isinstance(part, torch.nn.Linear):
            return [Input("args0", floating, (batch, part.in_features))]
        if isinstance(part, torch.nn.Conv2d):
            return [Input("args0", floating, (batch, part.in_channels, image, image))]
        if isinstance(part, torch.nn.Conv1d):
            return [Input("args0", floating, (batch, part.in_channels, sequence))]
    raise InputError("--input", NO_VALUE, "is missing: the module's first layer does not say what it reads", FORM)
