"""A matrix in 4 bits under layers of another implementation's than transformers'."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.layers.basic import Linear
from memcalc.play.machine import Machine
from memcalc.play.quantized import gemv_4bit, linear_4bit, reads_packed
from memcalc.play.values import Value
from memcalc.quantization import packed
from memcalc.records import dataclass, replace
from memcalc.tensors import Tensor


@dataclass
class PackedLinear:
    """Bitsandbytes' ``Linear4bit`` in place of an ``nn.Linear``; nothing of it trains.

    Attributes:
        base: what it stands for.
        stored: the dtype that it was quantised from, to which it is dequantised before it is cast.
        nested: whether its scales are quantised in turn.
        keeps: whether inputs are kept to the end of the graph, as bitsandbytes did until 0.42.
    """

    base: Linear
    stored: str
    nested: bool
    keeps: bool

    @property
    def in_features(self) -> object:
        """Of the matrix."""
        return self.base.in_features

    @property
    def out_features(self) -> object:
        """Of the matrix."""
        return self.base.out_features

    def tensors(self) -> Iterator[Tensor]:
        """The packed matrix, its scales, and the bias."""
        for tensor in self.base.tensors():
            if tensor.name == "weight":
                yield from packed(tensor, nested=self.nested)
            else:
                yield replace(tensor, trainable=False)

    def play(self, machine: Machine, value: Value) -> Value:
        """``(..., in)`` to ``(..., out)``."""
        out = self.base.out_features
        bias = machine.parameter("bias", (out,), "linear") if self.base.bias else None
        shape = (out, self.base.in_features)
        if reads_packed(machine, value):
            return gemv_4bit(machine, value, shape, bias, nested=self.nested)
        return linear_4bit(machine, value, shape, bias, stored=self.stored, nested=self.nested, keeps=self.keeps)
