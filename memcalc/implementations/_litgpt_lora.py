"""Litgpt's own adapters: low-rank matrices beside a frozen ``nn.Linear``, and beside the fused one of attention.

source: Lightning-AI/litgpt lora.py: LoRALinear.forward, LoRAQKVLinear.forward, conv1d, zero_pad (0d207708, 101e31d2)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memcalc.arrays import Count
from memcalc.play.conv1d import conv1d
from memcalc.play.copies import index_copy, index_copy_in_place
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.pointwise import add, dropout, scaled
from memcalc.play.reshape import cat, merge_dims, pieces, split_dim, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

ATTENTION = ("query", "key", "value")
TARGETS = (*ATTENTION, "projection", "mlp", "head")
"""What ``litgpt finetune lora`` can adapt (lora.py: Config.lora_query and its kin)."""


@dataclass
class Lora:
    """What is adapted, and how.

    Attributes:
        rank: of the two matrices.
        dropout: before the first of them.
        targets: of ``TARGETS``.
        in_place: whether padding writes in place by an index that is kept (May 2024 on), or copies by a fresh one.
    """

    rank: int
    dropout: float
    targets: frozenset[str]
    in_place: bool


@dataclass
class LoraLinear:
    """A frozen matrix with ``lora_A`` and ``lora_B`` beside it; without them where its rank is 0."""

    base: Any
    lora: Lora | None

    def tensors(self) -> Iterator[Tensor]:
        """The adapters, which the module registers itself, then those of ``linear``."""
        if self.lora is not None:
            yield Tensor("lora_A", (self.lora.rank, self.base.in_features), kind="linear")
            yield Tensor("lora_B", (self.base.out_features, self.lora.rank), kind="linear", zeros=True)
        for tensor in self.base.tensors():
            yield tensor.under("linear")

    def play(self, machine: Machine, value: Value) -> Value:
        """``linear(x) + dropout(x) @ A.T @ B.T * scaling``."""
        pretrained: Value = machine.call("linear", self.base.play, machine, value)
        if self.lora is None:
            return pretrained
        first = machine.parameter("lora_A", (self.lora.rank, self.base.in_features), "linear")
        second = machine.parameter("lora_B", (self.base.out_features, self.lora.rank), "linear")
        lora = scaled(machine, linear(machine, linear(machine, dropout(machine, value, self.lora.dropout), first), second))
        return add(machine, pretrained, lora)


@dataclass
class LoraFused:
    """The same beside the fused matrix of attention, for some of query, key and value.

    Attributes:
        base: the matrix.
        widths: features of query, key and value.
        lora: what is adapted.
    """

    base: Any
    widths: tuple[Count, Count, Count]
    lora: Lora

    def chosen(self) -> list[Count]:
        """Widths of those that are adapted."""
        return [width for name, width in zip(ATTENTION, self.widths, strict=True) if name in self.lora.targets]

    def padded(self) -> Count:
        """Features that are written to by index; 0 where all three are adapted."""
        chosen = self.chosen()
        return sum(chosen, 0) if 0 < len(chosen) < len(ATTENTION) else 0

    def tensors(self) -> Iterator[Tensor]:
        """One A for each that is adapted, in one matrix, and their B below each other."""
        chosen = self.chosen()
        if chosen:
            yield Tensor("lora_A", (self.lora.rank * len(chosen), self.base.in_features), kind="linear")
            yield Tensor("lora_B", (sum(chosen, 0), self.lora.rank), kind="linear", zeros=True)
        for tensor in self.base.tensors():
            yield tensor.under("linear")

    def play(self, machine: Machine, value: Value) -> Value:
        """``linear(x) + pad(conv(dropout(x) @ A.T, B)) * scaling``."""
        pretrained: Value = machine.call("linear", self.base.play, machine, value)
        chosen, rank = self.chosen(), self.lora.rank
        if not chosen:
            return pretrained
        first = machine.parameter("lora_A", (rank * len(chosen), self.base.in_features), "linear")
        second = machine.parameter("lora_B", (sum(chosen, 0), rank), "linear")
        after_a = linear(machine, dropout(machine, value, self.lora.dropout), first)
        after_b = self._convolved(machine, transpose(machine, after_a, 1, 2), unsqueeze(machine, second, 2), chosen)
        after_b = transpose(machine, after_b, 1, 2)
        lora = scaled(machine, self._pad(machine, after_b))
        return add(machine, pretrained, lora)

    def _convolved(self, machine: Machine, value: Value, weight: Value, chosen: list[Count]) -> Value:
        if machine.same(self.widths[0], self.widths[1]):  # one grouped convolution serves all
            return conv1d(machine, value, weight)
        values = pieces(machine, value, 1, [self.lora.rank] * len(chosen))
        weights = pieces(machine, weight, 0, chosen)
        return cat(machine, [conv1d(machine, a, b) for a, b in zip(values, weights, strict=True)], 1)

    def _pad(self, machine: Machine, value: Value) -> Value:
        if not self.padded():
            return value
        return self._in_place(machine, value) if self.lora.in_place else self._copied(machine, value)

    def _in_place(self, machine: Machine, value: Value) -> Value:
        result = machine.new((*value.shape[:-1], self.base.out_features), value.dtype, "new_zeros")
        return index_copy_in_place(machine, result, machine.constant((self.padded(),), "int64"), value)

    def _copied(self, machine: Machine, value: Value) -> Value:
        value = transpose(machine, value, 0, 1)
        shape = (*value.shape[:-1], self.base.out_features)
        result = machine.new((shape[0] * shape[1], shape[2]), value.dtype, "new_zeros")
        index = machine.new((self.padded(),), "int64", "tensor")
        result = index_copy(machine, result, index, merge_dims(machine, value, 0, 1))
        return transpose(machine, split_dim(machine, result, 0, shape[:2]), 0, 1)
