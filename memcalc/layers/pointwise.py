"""Layers without tensors that still leave something for backward: scalings, caps, pooling."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.play.activations import activated
from memcalc.play.machine import Machine
from memcalc.play.pointwise import scaled, tanh
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class Scale:
    """A multiplication by a constant, as of cohere's logits."""

    factor: float

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())

    def play(self, machine: Machine, value: Value) -> Value:
        """The value, scaled."""
        return scaled(machine, value)


@dataclass(frozen=True, slots=True)
class Softcap:
    """``cap · tanh(x / cap)``, as of gemma2's logits: three steps of the shape of ``x``."""

    cap: float

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())

    def play(self, machine: Machine, value: Value) -> Value:
        """The value, bounded."""
        value = scaled(machine, value, "div.Tensor")
        value = tanh(machine, value)
        return scaled(machine, value)


@dataclass(frozen=True, slots=True)
class AveragePool:
    """``nn.AvgPool2d`` that leaves ``positions`` of the positions it is given."""

    positions: Count

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())


@dataclass(frozen=True, slots=True)
class Activation:
    """A nonlinearity that stands alone, as a pooler's tanh."""

    function: str

    def tensors(self) -> Iterator[Tensor]:
        """None."""
        return iter(())

    def play(self, machine: Machine, value: Value) -> Value:
        """The value under the nonlinearity."""
        return activated(machine, self.function, value)
