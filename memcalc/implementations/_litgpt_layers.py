"""Litgpt's layers: fused attention on cached rotary tables, three feed-forwards, and blocks in three orders.

source: Lightning-AI/litgpt model.py: Block, CausalSelfAttention, GptNeoxMLP, LLaMAMLP, GemmaMLP, RMSNorm, apply_rope
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from memcalc.arrays import Count
from memcalc.layers.base import Layer, Module
from memcalc.layers.basic import Norm
from memcalc.play import attention as kernels
from memcalc.play.machine import Machine
from memcalc.play.matmul import matmul
from memcalc.play.norms import layer_norm, softmax
from memcalc.play.pointwise import add, gelu, mul, neg, rsqrt, scaled, shifted, silu, tanh, to
from memcalc.play.reduce import mean_last
from memcalc.play.reshape import cat, expand, merge_dims, narrow, permute, pieces, split_dim, transpose
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


class Tables(NamedTuple):
    """The cached cosines and sines of a sequence, and the mask over a cache of keys; None where there is no cache."""

    cos: Value
    sin: Value
    mask: Value | None = None


@dataclass
class LitNorm:
    """A normalisation.

    Attributes:
        width: features.
        kind: torch's own layer normalisation, or an RMSNorm: in the dtype it is given (2023), in FP32 with the cast after the
            weight (October 2023) or before it (March 2024), or with the weight in FP32 (August 2024).
        offset: whether the weight is taken plus one (Gemma).
    """

    width: Count
    kind: Literal["layer", "own", "cast_last", "cast_first", "float_weight"]
    offset: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Scale, and shift of a layer normalisation."""
        return Norm(self.width, bias=self.kind == "layer").tensors()

    def play(self, machine: Machine, x: Value) -> Value:
        """The value, normalised."""
        weight = machine.parameter("weight", (self.width,), "norm")
        if self.kind == "layer":
            return layer_norm(machine, x, weight, machine.parameter("bias", (self.width,), "norm"))
        dtype = x.dtype
        if self.kind != "own":
            x = to(machine, x, "float32")
        norm_x = mean_last(machine, mul(machine, x, x))
        x_normed = mul(machine, x, rsqrt(machine, shifted(machine, norm_x)))
        if self.kind == "own":
            return mul(machine, weight, x_normed)
        if self.kind == "cast_last":
            return to(machine, mul(machine, weight, x_normed), dtype)
        if self.kind == "cast_first":
            x_normed = to(machine, x_normed, dtype)
            return mul(machine, x_normed, shifted(machine, weight) if self.offset else weight)
        weight = shifted(machine, weight) if self.offset else weight
        return to(machine, mul(machine, x_normed, to(machine, weight, "float32")), dtype)


@dataclass
class LitAttention:
    """Attention whose query, key and value come interleaved by group from one matrix.

    Attributes:
        qkv: that matrix.
        proj: of the result.
        heads: query heads.
        groups: heads of keys and values.
        head_size: of each.
        rotated: dimensions that turn.
        shares: whether one key head stands for all without being repeated (until October 2023).
        softcap: whether scores are capped, and attention therefore written out.
        sliding: whether this layer looks back on a window.
    """

    qkv: Any
    proj: Any
    heads: Count
    groups: Count
    head_size: Count
    rotated: Count
    shares: bool = False
    softcap: bool = False
    sliding: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """The two matrices."""
        return Module((("attn", self.qkv), ("proj", self.proj))).tensors()

    def play(self, machine: Machine, x: Value, tables: Tables) -> Value:
        """``(batch, length, width)`` to the same."""
        batch, length = x.shape[:2]
        qkv = machine.call("attn", self.qkv.play, machine, x)
        each = self.heads // self.groups
        qkv = split_dim(machine, qkv, 2, (self.groups, each + 2, self.head_size))
        qkv = permute(machine, qkv, (0, 2, 3, 1, 4))
        q, k, v = pieces(machine, qkv, 2, (each, 1, 1))
        alone = (self.shares or tables.mask is not None) and machine.same(self.groups, 1)
        if not machine.same(self.groups, self.heads) and not alone:
            shape = (batch, self.groups, each, length, self.head_size)
            k, v = expand(machine, k, shape), expand(machine, v, shape)
        q, k, v = (merge_dims(machine, part, 1, 2) for part in (q, k, v))
        q_roped = rotate(machine, self._turning(machine, q), tables)
        k_roped = rotate(machine, self._turning(machine, k), tables)
        q = self._joined(machine, q_roped, q)
        k = self._joined(machine, k_roped, k)
        if machine.cache is not None:
            k, v = machine.cache.update(machine, k, v)
        mask, bias = self._window(machine, q, tables.mask) if self.sliding else (tables.mask, None)
        y = self._attended(machine, q, k, v, mask)
        y = merge_dims(machine, y, 2, 3)
        out: Value = machine.call("proj", self.proj.play, machine, y)
        del bias
        return out

    def _turning(self, machine: Machine, value: Value) -> Value:
        """``value[..., :rotated]``, which is the value where all of it turns."""
        whole = machine.same(self.rotated, self.head_size)
        return value if whole else narrow(machine, value, -1, self.rotated)

    def _joined(self, machine: Machine, roped: Value, value: Value) -> Value:
        rest = narrow(machine, value, -1, self.head_size - self.rotated)
        return plain_cat(machine, (roped, rest))

    def _window(self, machine: Machine, q: Value, mask: Value | None) -> tuple[Value, Value]:
        """The mask, and the bias of the window that is added to it in place; both are held on to."""
        mask = triangle(machine, q) if mask is None else mask
        bias = machine.like(machine.like(mask, "ones_like"), "tril")
        if bias.dtype != "bool":
            machine.like(bias, "_to_copy", "bool")
        return mask, bias

    def _attended(self, machine: Machine, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
        if not self.softcap:
            y = kernels.attend(machine, q, k, v, mask, causal=mask is None)
            return transpose(machine, y, 1, 2)
        scores = scaled(machine, matmul(machine, q, transpose(machine, k, 2, 3)))
        scores = scaled(machine, tanh(machine, scaled(machine, scores, "div.Tensor")))
        if mask is None:
            mask = triangle(machine, q)
        scores = add(machine, scores, mask)
        scores = to(machine, softmax(machine, scores, "float32"), q.dtype)
        return transpose(machine, matmul(machine, scores, v), 1, 2)


def triangle(machine: Machine, q: Value) -> Value:
    """A causal mask, filled in place."""
    mask = machine.like(machine.new((q.shape[2], q.shape[2]), q.dtype, "ones"), "triu")
    machine.like(mask, "_to_copy", "bool")
    return mask


def plain_cat(machine: Machine, values: tuple[Value, Value]) -> Value:
    """Side by side in the last dimension, contiguous (ATen TensorShape.cpp:cat, but for channels last)."""
    out = cat(machine, values, -1)
    out.order = None
    return out


def rotate(machine: Machine, x: Value, tables: Tables) -> Value:
    """source: model.py:apply_rope"""
    half = x.shape[-1] // 2
    x1 = narrow(machine, x, -1, half)
    x2 = narrow(machine, x, -1, x.shape[-1] - half)
    rotated = plain_cat(machine, (neg(machine, x2), x1))
    roped = add(machine, mul(machine, x, tables.cos), mul(machine, rotated, tables.sin))
    return to(machine, roped, x.dtype)


@dataclass
class LitMLP:
    """A feed-forward: two matrices around a GELU (``neox``), or three of which one gates by SiLU (``llama``) or GELU."""

    kind: Literal["neox", "llama", "gemma"]
    parts: tuple[tuple[str, Any], ...]

    def tensors(self) -> Iterator[Tensor]:
        """Of each matrix."""
        return Module(self.parts).tensors()

    def play(self, machine: Machine, x: Value) -> Value:
        """``(batch, length, width)`` to the same."""
        layers = dict(self.parts)
        if self.kind == "neox":
            x = machine.call("fc", layers["fc"].play, machine, x)
            x = gelu(machine, x)
            return machine.call("proj", layers["proj"].play, machine, x)  # type: ignore[no-any-return]
        x_fc_1 = machine.call("fc_1", layers["fc_1"].play, machine, x)
        x_fc_2 = machine.call("fc_2", layers["fc_2"].play, machine, x)
        x = mul(machine, (silu if self.kind == "llama" else gelu)(machine, x_fc_1), x_fc_2)
        return machine.call("proj", layers["proj"].play, machine, x)  # type: ignore[no-any-return]


@dataclass
class LitBlock:
    """One layer.

    Attributes:
        parts: by name.
        parallel: whether attention and feed-forward read the same input.
        residual_first: the order of the sums until October 2023, ``x + h + mlp``; later ``mlp + h + x``.
        two_names: whether what the first norm gives is still held when the second norm's is read (until March 2024).
    """

    parts: tuple[tuple[str, Layer], ...]
    parallel: bool
    residual_first: bool
    two_names: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Of each part."""
        return Module(self.parts).tensors()

    def play(self, machine: Machine, x: Value, tables: Tables) -> Value:
        """source: model.py:Block.forward"""
        normed = self._run(machine, "norm_1", x)
        attention = machine.call("attn", Module(self.parts).part("attn").play, machine, normed, tables)
        if self._has("post_attention_norm"):
            attention = self._run(machine, "post_attention_norm", attention)
        if self.parallel:
            first = normed if self.two_names else None
            normed = self._run(machine, "norm_2", x) if self._has("norm_2") else normed
            if self.residual_first:
                out = add(machine, add(machine, x, attention), self._run(machine, "mlp", normed))
                del first
                return out
            out = add(machine, add(machine, self._run(machine, "mlp", normed), attention), x)
            del first
            return out
        x = add(machine, attention, x)
        made = self._run(machine, "mlp", self._run(machine, "norm_2", x))
        if self._has("post_mlp_norm"):
            made = self._run(machine, "post_mlp_norm", made)
        return add(machine, made, x)

    def _has(self, name: str) -> bool:
        return Module(self.parts).has(name)

    def _run(self, machine: Machine, name: str, value: Value) -> Value:
        return machine.call(name, Module(self.parts).part(name).play, machine, value)  # type: ignore[no-any-return]
