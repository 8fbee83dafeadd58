"""Torchtitan's layers: attention on rotary numbers that are complex (Llama 3) or not (Qwen3), a gated feed-forward, a block.

Locals stand for the locals of the modules: what they hold lives until the function returns.

source: pytorch/torchtitan 9dec370 models/llama/model.py, v0.1.0, v0.2.0 and v0.2.2 models/llama3/model/model.py and
models/qwen3/model/model.py
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.implementations._torchtitan_versions import Version, order_of
from memcalc.layers.base import Module
from memcalc.layers.basic import Linear, Norm
from memcalc.play import attention as kernels
from memcalc.play.complexes import as_complex, as_real, turned_by
from memcalc.play.machine import Machine
from memcalc.play.norms import rms_norm
from memcalc.play.pointwise import add, mul, neg, power, rsqrt, shifted, silu, to
from memcalc.play.reduce import mean_last
from memcalc.play.reshape import cat, contiguous, expand, merge_dims, narrow, split_dim, transpose, unsqueeze
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor

FUSED = (2, 9)
"""The first torch whose ``rms_norm`` is one kernel on CUDA."""


@dataclass
class TitanNorm:
    """An RMSNorm, ``written`` out in FP32 or torch's own."""

    width: Count
    kind: str

    def tensors(self) -> Iterator[Tensor]:
        """The scale."""
        return Norm(self.width).tensors()

    def play(self, machine: Machine, x: Value) -> Value:
        """The value, normalised (models/norms.py:RMSNorm.forward)."""
        weight = machine.parameter("weight", (self.width,), "norm")
        if self.kind == "torch" and machine.policy.behaviour.torch >= FUSED:
            return rms_norm(machine, x, weight)
        # before its kernel, torch's own was written out likewise (pytorch 2.8 native/layer_norm.cpp:rms_norm_symint)
        output = to(machine, _over_root(machine, to(machine, x, "float32")), x.dtype)
        return mul(machine, output, weight)


def _over_root(machine: Machine, x: Value) -> Value:
    return mul(machine, x, rsqrt(machine, shifted(machine, mean_last(machine, power(machine, x)))))


@dataclass
class TitanAttention:
    """Attention without biases; Qwen3's (``normed``) has a norm on queries and on keys."""

    width: Count
    heads: Count
    groups: Count
    size: Count
    version: Version
    normed: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """The norms, where there are any, and the four matrices."""
        norm = TitanNorm(self.size, "torch")
        norms = (("q_norm", norm), ("k_norm", norm)) if self.normed else ()
        return Module((*norms, *self._parts().items())).tensors()

    def _parts(self) -> dict[str, Linear]:
        narrow, wide = self.groups * self.size, self.heads * self.size
        before = self.version.mixing
        return {
            f"{before}wq": Linear(self.width, wide, bias=False), f"{before}wk": Linear(self.width, narrow, bias=False),
            f"{before}wv": Linear(self.width, narrow, bias=False), "wo": Linear(wide, self.width, bias=False),
        }  # fmt: skip

    def play(self, machine: Machine, x: Value, angles: Value) -> Value:
        """``(batch, length, width)`` to the same (Attention.forward)."""
        parts, size = self._parts(), self.size
        xq, xk, xv = (machine.call(name, part.play, machine, x) for name, part in parts.items() if name != "wo")
        xq = split_dim(machine, xq, 2, (self.heads, size))
        xk = split_dim(machine, xk, 2, (self.groups, size))
        xv = split_dim(machine, xv, 2, (self.groups, size))
        if self.normed:
            xq = machine.call("q_norm", TitanNorm(size, "torch").play, machine, xq)
            xk = machine.call("k_norm", TitanNorm(size, "torch").play, machine, xk)
        xq, xk = (turned_halves if self.normed else turned)(machine, xq, xk, angles)
        grouped = not machine.same(self.heads, self.groups)
        keys, values = xk, xv
        if grouped and self.version.repeats:
            keys, values = self._repeated(machine, xk), self._repeated(machine, xv)
        xq, xk, xv = transpose(machine, xq, 1, 2), transpose(machine, keys, 1, 2), transpose(machine, values, 1, 2)
        order = order_of(self.version, machine.policy.behaviour.capability)
        output = kernels.attend(machine, xq, xk, xv, causal=True, grouped=grouped and not self.version.repeats, order=order)
        output = contiguous(machine, transpose(machine, output, 1, 2))
        output = merge_dims(machine, output, 2, 3)
        return machine.call("wo", parts["wo"].play, machine, output)  # type: ignore[no-any-return]

    def _repeated(self, machine: Machine, x: Value) -> Value:
        """source: repeat_kv"""
        batch, length, groups, size = x.shape
        wide = expand(machine, unsqueeze(machine, x, 3), (batch, length, groups, self.heads // self.groups, size))
        return merge_dims(machine, wide, 2, 3)


def turned(machine: Machine, xq: Value, xk: Value, angles: Value) -> tuple[Value, Value]:
    """Rotary positions on pairs of neighbours, in FP32 (apply_rotary_emb)."""
    xq_ = _in_complex(machine, xq)
    xk_ = _in_complex(machine, xk)
    xq_out = merge_dims(machine, as_real(machine, turned_by(machine, xq_, angles)), 3, 4)
    xk_out = merge_dims(machine, as_real(machine, turned_by(machine, xk_, angles)), 3, 4)
    return to(machine, xq_out, xq.dtype), to(machine, xk_out, xk.dtype)


def _in_complex(machine: Machine, x: Value) -> Value:
    return as_complex(machine, split_dim(machine, to(machine, x, "float32"), 3, (x.shape[3] // 2, 2)))


def turned_halves(machine: Machine, xq: Value, xk: Value, cache: Value) -> tuple[Value, Value]:
    """Rotary positions on the halves of a head, by cosines and sines in its own dtype (models/qwen3: apply_rotary_emb)."""
    cos = to(machine, narrow(machine, cache, -1, xq.shape[3]), xq.dtype)
    sin = to(machine, narrow(machine, cache, -1, xq.shape[3]), xq.dtype)
    xq_out = add(machine, mul(machine, xq, cos), mul(machine, _rotate_half(machine, xq), sin))
    xk_out = add(machine, mul(machine, xk, cos), mul(machine, _rotate_half(machine, xk), sin))
    return to(machine, xq_out, xq.dtype), to(machine, xk_out, xk.dtype)


def _rotate_half(machine: Machine, x: Value) -> Value:
    half = x.shape[3] // 2
    x1, x2 = narrow(machine, x, -1, half), narrow(machine, x, -1, x.shape[3] - half)
    return cat(machine, (neg(machine, x2), x1), -1)


@dataclass
class TitanFeedForward:
    """Three matrices, of which ``w1``'s result gates ``w3``'s."""

    width: Count
    inner: Count

    def tensors(self) -> Iterator[Tensor]:
        """Of each matrix, in the order they are registered."""
        return Module(tuple(self._parts().items())).tensors()

    def _parts(self) -> dict[str, Linear]:
        first, last = Linear(self.width, self.inner, bias=False), Linear(self.inner, self.width, bias=False)
        return {"w1": first, "w2": last, "w3": first}

    def play(self, machine: Machine, x: Value) -> Value:
        """``(batch, length, width)`` to the same (FeedForward.forward)."""
        parts = self._parts()
        gate = silu(machine, machine.call("w1", parts["w1"].play, machine, x))
        x = mul(machine, gate, machine.call("w3", parts["w3"].play, machine, x))
        del gate
        return machine.call("w2", parts["w2"].play, machine, x)  # type: ignore[no-any-return]


@dataclass
class TitanBlock:
    """One layer: attention and feed-forward, each behind a norm."""

    attention: TitanAttention
    feed_forward: TitanFeedForward
    norm: TitanNorm

    def tensors(self) -> Iterator[Tensor]:
        """Of each part, in the order they are registered."""
        return Module((("attention", self.attention), ("feed_forward", self.feed_forward), ("attention_norm", self.norm),
                       ("ffn_norm", self.norm))).tensors()  # fmt: skip

    def play(self, machine: Machine, x: Value, angles: Value) -> Value:
        """source: TransformerBlock.forward"""
        normed = machine.call("attention_norm", self.norm.play, machine, x)
        attended = machine.call("attention", self.attention.play, machine, normed, angles)
        del normed
        h = add(machine, x, attended)
        del attended
        normed = machine.call("ffn_norm", self.norm.play, machine, h)
        fed = machine.call("feed_forward", self.feed_forward.play, machine, normed)
        del normed
        return add(machine, h, fed)
