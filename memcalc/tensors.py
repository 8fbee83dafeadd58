"""What a model is made of: tensors, identical ones counted rather than listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import field
from itertools import product as cartesian
from typing import Literal

from memcalc.arrays import Count, is_array, product
from memcalc.errors import InputError, did_you_mean
from memcalc.records import dataclass, replace

ITEMSIZE = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes per element, by torch's own dtype names (pytorch c10/core/ScalarType.h)."""

Kind = Literal["linear", "embedding", "norm", "batch_norm", "conv", "expert", "recurrent", "other"]
"""The operator that reads a tensor: decides autocast copies, quantisation overrides and Muon's matrices.

``linear``: weight or bias of a matrix multiplication; ``conv``: of a convolution; ``expert``: a mixture's stacked matrices;
``embedding``: a lookup table; ``norm``: a normalisation's scale or shift
(``batch_norm`` apart, which apex O2 leaves in fp32); ``recurrent``: state-space parameters.
"""


def itemsize(dtype: str, path: str = "dtype") -> int:
    """Bytes of one element.

    >>> itemsize("bfloat16")
    2
    """
    try:
        return ITEMSIZE[dtype]
    except KeyError:
        raise InputError(path, dtype, "is not a known dtype", did_you_mean(dtype, ITEMSIZE)) from None


@dataclass(frozen=True, slots=True)
class Span:
    """One repeated axis of a name: how many, and which indices they carry (``range(count)`` unless told).

    ``indices`` exist to print names; arithmetic uses ``count`` alone, which may be an array.
    """

    count: Count
    indices: Sequence[int] | None = None

    def labels(self) -> Sequence[int]:
        """The indices in order; only for a scalar span."""
        return range(int(self.count)) if self.indices is None else self.indices


@dataclass(frozen=True, slots=True)
class Tensor:
    """``count`` identical tensors of a model.

    Attributes:
        name: dotted name, one ``*`` for each repeated axis, as ``model.layers.*.mlp.up_proj.weight``.
        shape: the dimensions of one of them.
        dtype: torch's dtype name, as the model is built by default.
        count: how many there are.
        kind: the operator that reads it.
        role: ``parameter`` or ``buffer``.
        trainable: whether it receives a gradient.
        spans: the repeated axes, outermost first, one for each ``*``.
        holds: numbers in each element, where several are packed into one.
        zeros: whether each is known to be all zeros before the first step, as a fresh bias is and a trained one is not.
        idle: whether no gradient comes to it in training, though one is asked for: its part of the model does not run.
        recast: whether autocast casts it anew at each use and keeps no copy of it, as of a view of a weight.
    """

    name: str
    shape: tuple[Count, ...]
    dtype: str = "float32"
    count: Count = 1
    kind: Kind = "other"
    role: Literal["parameter", "buffer"] = "parameter"
    trainable: bool = True
    spans: tuple[Span, ...] = field(default=())
    zeros: bool = False
    holds: int = 1
    idle: bool = False
    recast: bool = False

    @property
    def numel(self) -> Count:
        """Elements of one of them."""
        return product(self.shape)

    @property
    def elements(self) -> Count:
        """Elements of all of them."""
        return self.numel * self.count

    @property
    def nbytes(self) -> Count:
        """Requested bytes of one of them, in its own dtype."""
        return self.numel * itemsize(self.dtype)

    def under(self, prefix: str) -> Tensor:
        """The same tensor inside a module of that name (no name, no change)."""
        return replace(self, name=f"{prefix}.{self.name}" if self.name else prefix) if prefix else self

    def repeated(self, span: Span) -> Tensor:
        """The same tensor in each member of a list of modules."""
        name = f"*.{self.name}" if self.name else "*"
        return replace(self, name=name, count=self.count * span.count, spans=(span, *self.spans))

    def present(self, times: Count) -> Tensor:
        """The same tensor, ``times`` times under one name: 0 where it is absent."""
        return replace(self, count=self.count * times)

    def names(self) -> Iterator[str]:
        """Every name this stands for.

        >>> list(Tensor("h.*.w", (2,), count=2, spans=(Span(2),)).names())
        ['h.0.w', 'h.1.w']
        """
        assert not is_array(self.count), "names of a tensor exist for one job, not for many"
        if not self.count:
            return
        pieces = self.name.split("*")
        for labels in cartesian(*(span.labels() for span in self.spans)):
            yield "".join(part + str(label) for part, label in zip(pieces, labels, strict=False)) + pieces[-1]
