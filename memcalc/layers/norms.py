"""Normalisations of queries and keys that hold one scale for each head."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.layers.base import Stack
from memcalc.layers.basic import NormFunction, layer_norm
from memcalc.play.machine import Machine
from memcalc.play.normalised import NORMS
from memcalc.play.reshape import cat, pieces
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """One normalisation over ``head_dim`` whose scale differs by head: weight ``(heads, head_dim)``.

    source: transformers 5.23.0 models/cohere/modeling_cohere.py CohereLayerNorm, as CohereAttention.__init__ makes it
    """

    heads: Count
    head_dim: Count
    function: NormFunction = "layer_composed"

    def tensors(self) -> Iterator[Tensor]:
        """The scale."""
        yield Tensor("weight", (self.heads, self.head_dim), kind="norm")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(batch, length, heads, head_dim)``, each head normalised."""
        weight = machine.parameter("weight", (self.heads, self.head_dim), "norm")
        return NORMS[self.function](machine, value, weight, None)


@dataclass(frozen=True, slots=True)
class NormPerHead:
    """A list of layer normalisations, one for each head, each with a scale ``(head_dim,)`` and no shift.

    source: transformers 5.23.0 models/stablelm/modeling_stablelm.py StableLmLayerNormPerHead.__init__
    """

    heads: Count
    head_dim: Count

    def tensors(self) -> Iterator[Tensor]:
        """The scales, under ``norms``."""
        for tensor in Stack(layer_norm(self.head_dim, bias=False), self.heads).tensors():
            yield tensor.under("norms")

    def play(self, machine: Machine, value: Value) -> Value:
        """``(batch, heads, length, head_dim)``, each head taken out, normalised and put back.

        source: transformers 5.23.0 models/stablelm/modeling_stablelm.py:StableLmLayerNormPerHead.forward
        """
        norm = layer_norm(self.head_dim, bias=False)
        ones: list[Count] = []
        while machine.decide(len(ones) < self.heads):
            ones.append(1)
        heads = pieces(machine, value, 1, ones)
        normed = [machine.call(f"norms.{place}", norm.play, machine, head) for place, head in enumerate(heads)]
        return cat(machine, normed, 1)
