"""Torchtune's decoder layers: norms and rotary positions in FP32, keys and values repeated for every query head, LoRA beside.

source: pytorch/torchtune modules/attention.py, rms_norm.py, position_embeddings.py, feed_forward.py, transformer.py,
peft/lora.py, models/qwen2/_positional_embeddings.py, at the commits of ``VERSIONS``
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Linear
from memcalc.play.attention import attend
from memcalc.play.flex import flex_attention
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.pointwise import add, dropout, mul, neg, power, rsqrt, scaled, shifted, silu, sub, to
from memcalc.play.reduce import mean_last
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, narrow, select, split_dim, stack, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

NormKind = Literal["own", "built_in"]


class Positions(NamedTuple):
    """What every layer turns queries and keys by.

    Attributes:
        cache: cosines and sines of all positions, in FP32.
        packed: whether each token's position is looked up, as in packed samples; attention is FlexAttention then.
    """

    cache: Value
    packed: bool


@dataclass
class TuneNorm:
    """An RMSNorm: written out with the scale after the cast (until November 2024), or torch's of FP32 by a scale as it is."""

    width: Count
    kind: NormKind

    def tensors(self) -> Iterator[Tensor]:
        """Its scale."""
        yield Tensor("scale", (self.width,), kind="norm")

    def play(self, machine: Machine, x: Value) -> Value:
        """The value, normalised over its last dimension."""
        scale = machine.parameter("scale", (self.width,), "norm")
        if self.kind == "own":
            x_fp32 = to(machine, x, "float32")
            x_normed = to(machine, _over_root(machine, x_fp32), x.dtype)
            return mul(machine, x_normed, scale)
        return to(machine, self._built_in(machine, to(machine, x, "float32"), scale), x.dtype)

    def _built_in(self, machine: Machine, x: Value, scale: Value) -> Value:
        """``F.rms_norm`` (ATen native/layer_norm.cpp:rms_norm): fused where the dtypes are one, else step by step."""
        from memcalc.play.norms import rms_norm

        if scale.dtype == x.dtype and machine.policy.behaviour.torch >= (2, 9):
            return rms_norm(machine, x, scale)
        return mul(machine, _over_root(machine, x), scale)


def _over_root(machine: Machine, x: Value) -> Value:
    return mul(machine, x, rsqrt(machine, shifted(machine, mean_last(machine, power(machine, x)))))


@dataclass
class TuneLora:
    """An adapter's rank and the share it drops before its first matrix."""

    rank: int
    dropout: float


@dataclass
class TuneLinear:
    """``nn.Linear``, or ``LoRALinear``, whose frozen matrix is its own parameter (peft/lora.py)."""

    base: Linear
    lora: TuneLora | None = None

    def tensors(self) -> Iterator[Tensor]:
        """Weight and bias, then the two low-rank matrices."""
        yield from self.base.tensors()
        if self.lora is not None:
            yield Tensor("lora_a.weight", (self.lora.rank, self.base.in_features), kind="linear")
            yield Tensor("lora_b.weight", (self.base.out_features, self.lora.rank), kind="linear", zeros=True)

    def play(self, machine: Machine, x: Value) -> Value:
        """``(..., in)`` to ``(..., out)``."""
        if self.lora is None:
            return self.base.plain(machine, x)
        out = self.base.plain(machine, x)
        first = machine.parameter("lora_a.weight", (self.lora.rank, self.base.in_features), "linear")
        second = machine.parameter("lora_b.weight", (self.base.out_features, self.lora.rank), "linear")
        lora_out = linear(machine, dropout(machine, x, self.lora.dropout), first)
        lora_out = scaled(machine, linear(machine, lora_out, second))
        return add(machine, out, lora_out)


@dataclass
class TuneAttention:
    """Multi-head attention.

    Attributes:
        matrices: ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        heads: of queries.
        groups: of keys and values.
        head_dim: of each.
        halves: whether the two halves of a head turn (Qwen 2), in the states' dtype; else neighbours, in FP32.
    """

    matrices: tuple[tuple[str, TuneLinear], ...]
    heads: Count
    groups: Count
    head_dim: Count
    halves: bool

    def tensors(self) -> Iterator[Tensor]:
        """Of the four matrices."""
        return Module(self.matrices).tensors()

    def play(self, machine: Machine, x: Value, y: Value, positions: Positions) -> Value:
        """``(rows, tokens, width)`` to the same (attention.py:MultiHeadAttention.forward)."""
        q = self._headed(machine, self._run(machine, "q_proj", x), self.heads)
        q = machine.call("pos_embeddings", self._turned, machine, q, positions)
        q = transpose(machine, q, 1, 2)
        k = self._run(machine, "k_proj", y)
        v = self._run(machine, "v_proj", y)
        k = self._headed(machine, k, self.groups)
        v = self._headed(machine, v, self.groups)
        k = machine.call("pos_embeddings", self._turned, machine, k, positions)
        k = transpose(machine, k, 1, 2)
        v = transpose(machine, v, 1, 2)
        if not machine.same(self.heads, self.groups):
            k = self._for_every_head(machine, k)
            v = self._for_every_head(machine, v)
        output = flex_attention(machine, q, k, v) if positions.packed else attend(machine, q, k, v, causal=True)
        output = merge_dims(machine, contiguous(machine, transpose(machine, output, 1, 2)), 2, 3)
        return self._run(machine, "output_proj", output)

    def _run(self, machine: Machine, name: str, value: Value) -> Value:
        return machine.call(name, dict(self.matrices)[name].play, machine, value)  # type: ignore[no-any-return]

    def _headed(self, machine: Machine, value: Value, heads: Count) -> Value:
        return split_dim(machine, value, 2, (heads, self.head_dim))

    def _for_every_head(self, machine: Machine, value: Value) -> Value:
        rows, groups, tokens, width = value.shape
        shape = (rows, groups, self.heads // self.groups, tokens, width)
        return merge_dims(machine, expand(machine, unsqueeze(machine, value, 2), shape), 1, 2)

    def _turned(self, machine: Machine, x: Value, positions: Positions) -> Value:
        return (_by_halves if self.halves else _by_neighbours)(machine, x, positions)


def _looked_up(machine: Machine, x: Value, positions: Positions) -> Value:
    """``cache[input_pos]`` of packed samples, a copy; else ``cache[:seq_len]``."""
    rows, tokens = x.shape[:2]
    last = positions.cache.shape[1:]
    if positions.packed:
        return machine.new((rows, tokens, *last), "float32", "index.Tensor")
    return unsqueeze(machine, narrow(machine, positions.cache, 0, tokens), 0)


def _by_neighbours(machine: Machine, x: Value, positions: Positions) -> Value:
    """source: position_embeddings.py:RotaryPositionalEmbeddings.forward; models/llama3_1/_position_embeddings.py likewise"""
    rope_cache = _looked_up(machine, x, positions)
    xshaped = split_dim(machine, to(machine, x, "float32"), 3, (x.shape[3] // 2, 2))
    rope_cache = unsqueeze(machine, rope_cache, 2)

    def each(place: Value) -> Value:
        return select(machine, place, -1)

    x_out = stack(
        machine,
        [
            sub(machine, mul(machine, each(xshaped), each(rope_cache)), mul(machine, each(xshaped), each(rope_cache))),
            add(machine, mul(machine, each(xshaped), each(rope_cache)), mul(machine, each(xshaped), each(rope_cache))),
        ],
        -1,
    )
    x_out = merge_dims(machine, x_out, 3, 4)
    return to(machine, x_out, x.dtype)


def _by_halves(machine: Machine, x: Value, positions: Positions) -> Value:
    """source: models/qwen2/_positional_embeddings.py:Qwen2RotaryPositionalEmbeddings.forward"""
    width = x.shape[3]
    rope_cache = _looked_up(machine, x, positions)
    rope_cache = unsqueeze(machine, rope_cache, 2)
    cos = to(machine, narrow(machine, rope_cache, -1, width), x.dtype)
    sin = to(machine, narrow(machine, rope_cache, -1, width), x.dtype)
    x1 = narrow(machine, x, -1, width // 2)
    x2 = narrow(machine, x, -1, width // 2)
    rotated = cat(machine, (neg(machine, x2), x1), -1)
    rotated.order = None
    return add(machine, mul(machine, x, cos), mul(machine, rotated, sin))


@dataclass
class TuneMLP:
    """A feed-forward gated by SiLU: ``w2(silu(w1(x)) * w3(x))``."""

    matrices: tuple[tuple[str, TuneLinear], ...]

    def tensors(self) -> Iterator[Tensor]:
        """Of the three matrices."""
        return Module(self.matrices).tensors()

    def play(self, machine: Machine, x: Value) -> Value:
        """source: feed_forward.py:FeedForward.forward"""
        layers = dict(self.matrices)
        h = silu(machine, machine.call("w1", layers["w1"].play, machine, x))
        h = mul(machine, h, machine.call("w3", layers["w3"].play, machine, x))
        return machine.call("w2", layers["w2"].play, machine, h)  # type: ignore[no-any-return]


@dataclass
class TuneBlock:
    """One layer: attention and feed-forward, each behind a norm; ``parts`` by name."""

    parts: tuple[tuple[str, Layer], ...]

    def tensors(self) -> Iterator[Tensor]:
        """Of each part."""
        return Module(self.parts).tensors()

    def play(self, machine: Machine, x: Value, positions: Positions) -> Value:
        """source: transformer.py:TransformerSelfAttentionLayer.forward"""
        h = self._run(machine, "sa_norm", x)
        attn_out = self._run(machine, "attn", h, h, positions)
        h = add(machine, attn_out, x)
        mlp_out = self._run(machine, "mlp", self._run(machine, "mlp_norm", h))
        return add(machine, h, mlp_out)

    def _run(self, machine: Machine, name: str, *values: Any) -> Value:
        return machine.call(name, Module(self.parts).part(name).play, machine, *values)  # type: ignore[no-any-return]
