"""What vision towers are made of beside transformer blocks."""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Buffer, Conv, Embedding, Linear, Parameter
from memcalc.layers.packed_attention import packed
from memcalc.play.machine import Machine
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass(frozen=True, slots=True)
class PatchPositions:
    """Patches of an image by a convolution that does not overlap, and a learned position for each: no class token.

    ``(side // patch)**2`` positions of ``hidden`` features.

    source: transformers 5.23.0 models/siglip/modeling_siglip.py SiglipVisionEmbeddings.__init__
    """

    channels: Count
    hidden: Count
    side: Count
    patch: Count

    @property
    def positions(self) -> Count:
        """Patches of one image."""
        return (self.side // self.patch) ** 2

    def tensors(self) -> Iterator[Tensor]:
        """The convolution, the table, and the positions' own numbers as an int64 buffer."""
        yield from Module(
            [
                ("patch_embedding", Conv(self.channels, self.hidden, (self.patch, self.patch))),
                ("position_embedding", Embedding(self.positions, self.hidden)),
                ("position_ids", Buffer((1, self.positions), dtype="int64")),
            ]
        ).tensors()


@dataclass(frozen=True, slots=True)
class TorchAttention:
    """``nn.MultiheadAttention`` over one width: the three inputs' matrices are one parameter ``(3 · hidden, hidden)``.

    source: pytorch 2.13.0 torch/nn/modules/activation.py MultiheadAttention.__init__
    """

    hidden: Count
    heads: Count
    dropout: float = 0.0

    def tensors(self) -> Iterator[Tensor]:
        """The fused input matrix and its bias, then the output projection."""
        yield from Module(
            [
                ("in_proj_weight", Parameter((3 * self.hidden, self.hidden), kind="linear")),
                ("in_proj_bias", Parameter((3 * self.hidden,), kind="linear")),
                ("out_proj", self.output),
            ]
        ).tensors()

    @property
    def output(self) -> Linear:
        """The output projection."""
        return Linear(self.hidden, self.hidden)

    def play(self, machine: Machine, hidden: Value) -> Value:
        """``(rows, tokens, hidden)`` to the same."""
        return packed(machine, self, hidden)


@dataclass(frozen=True, slots=True)
class AttentionPool:
    """One learned query that attends to all positions, then a normalised MLP around a residual.

    source: transformers 5.23.0 models/siglip/modeling_siglip.py SiglipMultiheadAttentionPoolingHead.__init__
    """

    hidden: Count
    heads: Count
    norm: Layer
    mlp: Layer

    def tensors(self) -> Iterator[Tensor]:
        """The query, the attention, the norm, the MLP."""
        yield from Module(
            [
                ("probe", Parameter((1, 1, self.hidden))),
                ("attention", TorchAttention(self.hidden, self.heads)),
                ("layernorm", self.norm),
                ("mlp", self.mlp),
            ]
        ).tensors()
