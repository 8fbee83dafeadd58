"""A decoder layer of Megatron's on Transformer Engine: norms inside the matrices behind them, biases handed on to be fused.

source: NVIDIA/Megatron-LM d98e8a64 core/transformer/transformer_layer.py, attention.py, mlp.py; core/models/gpt/
gpt_layer_specs.py:get_gpt_layer_with_transformer_engine_submodules
"""

from __future__ import annotations

from collections.abc import Iterator

from memcalc.arrays import Count
from memcalc.implementations import _megatron_attention as attention
from memcalc.implementations import _megatron_te as te
from memcalc.play.machine import Machine
from memcalc.play.reentrant import reentrant
from memcalc.play.reshape import merge_dims, split_dim
from memcalc.play.values import Value
from memcalc.records import dataclass
from memcalc.tensors import Tensor


@dataclass
class Shape:
    """``TransformerConfig``, read from a config of Hugging Face's, and what the job says of recomputing.

    Attributes:
        vocabulary: padded (``make_vocab_size_divisible_by``).
        biased: LayerNorm, biases and GELU, as GPT has them; else RMSNorm, no biases and SwiGLU.
        positions: learned ones; None for rotary ones.
        every: ``recompute_num_layers``.
        method: ``recompute_method``, ``uniform`` or ``block``.
    """

    vocabulary: Count
    width: Count
    layers: Count
    heads: Count
    groups: Count
    size: Count
    inner: Count
    biased: bool
    positions: Count | None
    tied: bool
    every: int
    method: str
    embedding_dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0


def norm_of(machine: Machine, shape: Shape, x: Value) -> Value:
    """A norm that stands alone."""
    weight = machine.parameter("weight", (shape.width,), "norm")
    return te.norm(machine, x, weight, machine.parameter("bias", (shape.width,), "norm") if shape.biased else None)


@dataclass
class MegatronLayer:
    """Attention and feed-forward, each added to what came in."""

    shape: Shape

    def _matrices(self) -> dict[str, tuple[Count, Count, bool]]:
        """By name: features in and out, and whether a norm stands in front."""
        shape = self.shape
        wide = shape.heads * shape.size
        return {
            "self_attention.linear_proj": (wide, shape.width, False),
            "self_attention.linear_qkv": (shape.width, wide + 2 * shape.groups * shape.size, True),
            "mlp.linear_fc1": (shape.width, shape.inner if shape.biased else 2 * shape.inner, True),
            "mlp.linear_fc2": (shape.inner, shape.width, False),
        }

    def tensors(self) -> Iterator[Tensor]:
        """In the order they are registered."""
        for name, (into, out, normed) in self._matrices().items():
            if normed:
                yield Tensor(f"{name}.layer_norm_weight", (into,), kind="norm")
                if self.shape.biased:
                    yield Tensor(f"{name}.layer_norm_bias", (into,), kind="norm")
            yield Tensor(f"{name}.weight", (out, into), kind="linear")
            if self.shape.biased:
                yield Tensor(f"{name}.bias", (out,), kind="linear")

    def _weights(self, machine: Machine, name: str) -> tuple[Value, Value | None]:
        into, out, _ = self._matrices()[name]
        weight = machine.call(name, machine.parameter, "weight", (out, into), "linear")
        return weight, machine.call(name, machine.parameter, "bias", (out,), "linear") if self.shape.biased else None

    def _behind_norm(self, machine: Machine, name: str, x: Value, *, adds: bool) -> tuple[Value, Value | None]:
        """A matrix with its norm: its result, and its bias where that is handed on."""
        into = self._matrices()[name][0]
        scale = machine.call(name, machine.parameter, "layer_norm_weight", (into,), "norm")
        shift = machine.call(name, machine.parameter, "layer_norm_bias", (into,), "norm") if self.shape.biased else None
        weight, bias = self._weights(machine, name)
        out = machine.call(name, te.norm_linear, machine, x, scale, shift, weight, bias if adds else None)
        return out, None if adds else bias

    def play(self, machine: Machine, x: Value) -> Value:
        """``(length, batch, width)`` to the same (TransformerLayer.forward)."""
        made, bias = self._attended(machine, x)
        x = te.bias_dropout_add(machine, made, bias, x, self.shape.hidden_dropout)
        del made
        made, bias = self._fed(machine, x)
        return te.bias_dropout_add(machine, made, bias, x, self.shape.hidden_dropout)

    def _attended(self, machine: Machine, x: Value) -> tuple[Value, Value | None]:
        """source: attention.py:Attention.forward, SelfAttention.get_query_key_value_tensors"""
        shape, name = self.shape, "self_attention.linear_qkv"
        each = shape.heads // shape.groups
        mixed, _ = self._behind_norm(machine, name, x, adds=True)
        mixed = split_dim(machine, mixed, 2, (shape.groups, (each + 2) * shape.size))
        query, key, value = te.split_along(machine, mixed, (each * shape.size, shape.size, shape.size))
        del mixed
        if not machine.same(shape.heads, shape.groups):  # else a view that changes nothing
            query = merge_dims(machine, split_dim(machine, query, 3, (each, shape.size)), 2, 3)
        if shape.positions is None:
            query = te.rotate(machine, query)
            key = te.rotate(machine, key)
        dropped = shape.attention_dropout if machine.training else 0.0

        def core(query: Value, key: Value, value: Value) -> Value:
            return attention.core(machine, query, key, value, dropped)

        selective = machine.policy.checkpointing == "selective"  # recompute_modules: core_attn
        out = reentrant(machine, core, query, key, value) if selective else core(query, key, value)
        weight, bias = self._weights(machine, "self_attention.linear_proj")
        return machine.call("self_attention.linear_proj", te.linear, machine, out, weight), bias

    def _fed(self, machine: Machine, x: Value) -> tuple[Value, Value | None]:
        """source: mlp.py:MLP.forward, bias_activation_fusion"""
        inner, bias = self._behind_norm(machine, "mlp.linear_fc1", x, adds=False)
        inner = te.swiglu(machine, inner) if bias is None else te.bias_gelu(machine, inner, bias)
        weight, bias = self._weights(machine, "mlp.linear_fc2")
        return machine.call("mlp.linear_fc2", te.linear, machine, inner, weight), bias
