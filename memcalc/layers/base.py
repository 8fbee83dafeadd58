"""What a layer is, and how layers are put together. A family is a tree of these and nothing else.

A layer yields the tensors it holds. The same object will play its forward and backward on a tape, so a layer keeps the
sizes that decide its activations (heads, head dimension, group counts), not just the shapes of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from memcalc.arrays import Condition, Count, as_count
from memcalc.records import dataclass, replace
from memcalc.tensors import Span, Tensor


@runtime_checkable
class Layer(Protocol):
    """Anything that can say which tensors it holds, named from itself downward."""

    def tensors(self) -> Iterator[Tensor]:
        """The parameters and buffers, in the order the module registers them."""
        ...


@dataclass(frozen=True, slots=True)
class Module:
    """Layers under names, in the order they run. A name may stand twice (two kinds of member in one list of modules);
    an empty name adds no level. ``registered`` names the parts registered before the others, first to last, where that is not
    the order they run in (a head built before its body).
    """

    parts: Sequence[tuple[str, Layer]]
    registered: tuple[str, ...] = ()

    def part(self, name: str) -> Any:
        """The part of that name; the first where several share it.

        Raises:
            KeyError: there is none.
        """
        for each, layer in self.parts:
            if each == name:
                return layer
        raise KeyError(name)

    def has(self, name: str) -> bool:
        """Whether there is a part of that name."""
        return any(each == name for each, _ in self.parts)

    def tensors(self) -> Iterator[Tensor]:
        """Each part's tensors, under its name."""
        rank = {name: index for index, name in enumerate(self.registered)}
        for name, part in sorted(self.parts, key=lambda part: rank.get(part[0], len(rank))):
            for tensor in part.tensors():
                yield tensor.under(name)


@dataclass(frozen=True, slots=True)
class Stack:
    """``count`` equal layers in a list of modules: ``layers.0``, ``layers.1``, …

    Where a list holds several kinds of layer, each kind is a stack of its own with the ``indices`` it occupies. A ``prefix``
    stands before each index, as in torchvision's ``encoder_layer_0``.
    """

    layer: Layer
    count: Count
    indices: Sequence[int] | None = None
    prefix: str = ""

    def tensors(self) -> Iterator[Tensor]:
        """The layer's tensors, counted ``count`` times."""
        span = Span(self.count, self.indices)
        for tensor in self.layer.tensors():
            repeated = tensor.repeated(span)
            yield replace(repeated, name=self.prefix + repeated.name)


@dataclass(frozen=True, slots=True)
class Maybe:
    """A layer that is there only where a condition on numbers holds, as a token-type table of no rows is not."""

    condition: Condition
    layer: Any

    def tensors(self) -> Iterator[Tensor]:
        """The layer's tensors, counted once or not at all."""
        times = as_count(self.condition)
        for tensor in self.layer.tensors():
            yield tensor.present(times)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A layer whose parameters receive no gradient, as Whisper's sinusoidal position table."""

    layer: Layer

    def tensors(self) -> Iterator[Tensor]:
        """The layer's tensors, none of them trainable."""
        for tensor in self.layer.tensors():
            yield replace(tensor, trainable=False)


@dataclass(frozen=True, slots=True)
class Nothing:
    """A layer without tensors: an activation, a dropout, an identity."""

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())
