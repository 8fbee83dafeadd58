"""Timm's vision transformer: one matrix for query, key and value, fused attention, layer scale, two feed-forwards.

source: huggingface/pytorch-image-models 1.0.31 timm/models/vision_transformer.py: Block; timm/layers/attention.py: Attention;
timm/layers/mlp.py: Mlp, GluMlp; timm/layers/layer_scale.py: LayerScale
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from memcalc.arrays import Count
from memcalc.layers.base import Module
from memcalc.layers.basic import Linear, Parameter, layer_norm
from memcalc.play.activations import activated
from memcalc.play.attention import attend
from memcalc.play.machine import Machine
from memcalc.play.pointwise import add, dropout, mul, silu
from memcalc.play.reshape import merge_dims, permute, pieces, split_dim, transpose
from memcalc.play.unbind import unbind
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

MlpLayer = Literal["Mlp", "SwiGLUPacked"]


@dataclass
class Widths:
    """What every block is made by.

    Attributes:
        width: features of a token.
        heads: of attention.
        inner: features that the feed-forward's second matrix reads.
        qkv_bias: whether the matrix of query, key and value has a bias.
        scaled: whether what attention and feed-forward give is scaled by feature (``init_values``).
        normed: whether queries and keys are normalised (``qk_norm``).
        mlp: ``Mlp``, or one whose first half gates the second (``SwiGLUPacked``).
        activation: of ``Mlp``.
        dropout: of attention's and the feed-forward's results (``proj_drop_rate``).
        attention_dropout: of attention's weights (``attn_drop_rate``).
    """

    width: Count
    heads: Count
    inner: Count
    qkv_bias: bool
    scaled: bool
    normed: bool
    mlp: MlpLayer
    activation: str
    dropout: float
    attention_dropout: float


@dataclass
class TimmBlock:
    """One layer: attention and feed-forward, each behind a layer normalisation."""

    of: Widths

    def parts(self) -> dict[str, Any]:
        """By name, in the order they are registered."""
        of, width = self.of, self.of.width
        head, gamma = of.width // of.heads, Parameter((of.width,), kind="norm")
        parts: dict[str, Any] = {"norm1": layer_norm(width), "attn.qkv": Linear(width, 3 * width, of.qkv_bias)}
        if of.normed:
            parts |= {"attn.q_norm": layer_norm(head), "attn.k_norm": layer_norm(head)}
        parts["attn.proj"] = Linear(width, width)
        if of.scaled:
            parts["ls1.gamma"] = gamma
        gated = 2 if of.mlp == "SwiGLUPacked" else 1
        parts |= {
            "norm2": layer_norm(width), "mlp.fc1": Linear(width, gated * of.inner), "mlp.fc2": Linear(of.inner, width)
        }  # fmt: skip
        if of.scaled:
            parts["ls2.gamma"] = gamma
        return parts

    def tensors(self) -> Iterator[Tensor]:
        """Of each part."""
        return Module(tuple(self.parts().items())).tensors()

    def play(self, machine: Machine, x: Value) -> Value:
        """``(rows, tokens, width)`` to the same (vision_transformer.py:Block.forward)."""
        x = add(machine, x, self._scaled(machine, "ls1", self._run(machine, "attn", self._attended, "norm1", x)))
        return add(machine, x, self._scaled(machine, "ls2", self._run(machine, "mlp", self._fed, "norm2", x)))

    def _run(self, machine: Machine, name: str, function: Any, norm: str, x: Value) -> Value:
        """A part, of what its norm gives; the call holds that until the part is through (torch Module._call_impl: args)."""
        return machine.call(name, function, machine, self._part(machine, "", norm, x))  # type: ignore[no-any-return]

    def _part(self, machine: Machine, of: str, name: str, value: Value) -> Value:
        return machine.call(name, self.parts()[of + name].play, machine, value)  # type: ignore[no-any-return]

    def _scaled(self, machine: Machine, name: str, value: Value) -> Value:
        if not self.of.scaled:
            return value
        with machine.at(name):
            return mul(machine, value, machine.parameter("gamma", (self.of.width,), "norm"))

    def _attended(self, machine: Machine, x: Value) -> Value:
        """source: timm/layers/attention.py:Attention.forward"""
        of = self.of
        qkv = split_dim(machine, self._part(machine, "attn.", "qkv", x), 2, (3, of.heads, of.width // of.heads))
        qkv = permute(machine, qkv, (2, 0, 3, 1, 4))
        q, k, v = unbind(machine, qkv, 0)
        if of.normed:
            q, k = self._part(machine, "attn.", "q_norm", q), self._part(machine, "attn.", "k_norm", k)
        x = attend(machine, q, k, v, probability=of.attention_dropout)
        x = merge_dims(machine, transpose(machine, x, 1, 2), 2, 3)
        x = self._part(machine, "attn.", "proj", x)
        return dropout(machine, x, of.dropout)

    def _fed(self, machine: Machine, x: Value) -> Value:
        """source: timm/layers/mlp.py: Mlp.forward, GluMlp.forward"""
        of = self.of
        x = self._part(machine, "mlp.", "fc1", x)
        if of.mlp == "SwiGLUPacked":
            x1, x2 = pieces(machine, x, -1, (of.inner, of.inner))
            x = mul(machine, silu(machine, x1), x2)
        else:
            x = machine.call("act", activated, machine, of.activation, x)
        x = machine.call("drop1", dropout, machine, x, of.dropout)
        x = self._part(machine, "mlp.", "fc2", x)
        return dropout(machine, x, of.dropout)
