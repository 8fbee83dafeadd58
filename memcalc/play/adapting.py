"""What stands on a linear layer, as the machine asks it: peft's adapters beside it, and a base in 4 bits.

source: peft 0.21.2 tuners/lora/layer.py:Linear.forward, bnb.py:Linear4bit.forward, variants.py:DoraLinearVariant.forward,
dora.py:DoraLinearLayer.forward
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memcalc.play.graph import Leaf
from memcalc.play.matmul import linear
from memcalc.play.pointwise import add, div, dropout, mul, scaled, shifted, sub, to
from memcalc.play.reshape import clone, permute, split_dim
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.play.machine import Machine

ADAPTER = "default"
"""peft's name of the only adapter (mapping_func.py:get_peft_model)."""


class Adapter(Protocol):
    """What stands on a model's layers."""

    def linear(self, machine: Machine, layer: Any, value: Value) -> Value:
        """A linear layer's forward, at the machine's path, with whatever stands on it."""
        ...

    def embedded(self, machine: Machine, indices: Value, out: Value) -> Value:
        """What a table gave, as the model goes on with it."""
        ...


class Peft(NamedTuple):
    """Peft's LoRA on a model of transformers'.

    Attributes:
        targets: paths of the adapted modules, places in lists as ``*``.
        rank: of the two matrices.
        dropout: before them.
        dora: whether a magnitude is learnt besides (DoRA).
        packed: paths of the modules whose matrix is in 4 bits.
        nested: whether their scales are quantised in turn.
    """

    targets: frozenset[str]
    rank: int
    dropout: float = 0.0
    dora: bool = False
    packed: frozenset[str] = frozenset()
    nested: bool = False

    def linear(self, machine: Machine, layer: Any, value: Value) -> Value:
        """The base, and the adapter's own on top of it."""
        path = counted(machine.path)
        packed = path in self.packed
        if path not in self.targets:
            return self._base(machine, layer, value, packed=packed)
        result: Value = machine.call("base_layer", self._base, machine, layer, value, packed=packed)
        if packed:
            result = clone(machine, result)
        dtype = result.dtype
        if not packed or machine.autocast is None:
            value = to(machine, value, machine.policy.dtype_of("linear"))
        result = self._dora(machine, layer, value, result) if self.dora else self._plain(machine, layer, value, result)
        return to(machine, result, dtype)

    def embedded(self, machine: Machine, indices: Value, out: Value) -> Value:
        """As without adapters, whose base is frozen."""
        return wanted(machine, indices, out)

    def _base(self, machine: Machine, layer: Any, value: Value, *, packed: bool) -> Value:
        if not packed:
            return layer.plain(machine, value)  # type: ignore[no-any-return]
        from memcalc.play.quantized import linear_4bit

        shape = (layer.out_features, layer.in_features)
        bias = machine.parameter("bias", shape[:1], "linear") if layer.bias else None
        return linear_4bit(machine, value, shape, bias, stored=machine.policy.dtype_of("linear"), nested=self.nested)

    def _matrices(self, machine: Machine, layer: Any) -> tuple[Value, Value]:
        first = machine.parameter(f"lora_A.{ADAPTER}.weight", (self.rank, layer.in_features), "linear")
        return first, machine.parameter(f"lora_B.{ADAPTER}.weight", (layer.out_features, self.rank), "linear")

    def _plain(self, machine: Machine, layer: Any, value: Value, result: Value) -> Value:
        first, second = self._matrices(machine, layer)
        dropped = dropout(machine, value, self.dropout)
        return add(machine, result, scaled(machine, linear(machine, linear(machine, dropped, first), second)))

    def _dora(self, machine: Machine, layer: Any, value: Value, result: Value) -> Value:
        base: Value | None = result
        if self.dropout > 0 and machine.training:
            value, base = dropout(machine, value, self.dropout), None
        return add(machine, result, self._magnified(machine, layer, value, base))

    def _magnified(self, machine: Machine, layer: Any, value: Value, base: Value | None) -> Value:
        """source: dora.py:DoraLinearLayer.forward"""
        first, second = self._matrices(machine, layer)
        out, into = layer.out_features, layer.in_features
        eye = machine.new((into, into), first.dtype, "eye")
        lora_weight = permute(machine, linear(machine, linear(machine, eye, first), second), (1, 0))
        del eye
        lora_weight = to(machine, lora_weight, value.dtype)
        magnitude = machine.parameter(f"lora_magnitude_vector.{ADAPTER}.weight", (out,), "linear")
        shape = (into, out) if layer.transposed else (out, into)
        with machine.at("base_layer"):
            weight = machine.parameter("weight", shape, "linear")
        norm = self._norm(machine, weight if not layer.transposed else permute(machine, weight, (1, 0)), lora_weight)
        scale = split_dim(machine, div(machine, magnitude, norm), 0, (1, out))
        lora_result = linear(machine, linear(machine, value, first), second)
        if base is None:
            base = linear(machine, value, weight, transposed=layer.transposed)
        elif layer.bias:
            with machine.at("base_layer"):
                base = sub(machine, base, machine.parameter("bias", (out,), "linear"))
        plain = mul(machine, shifted(machine, scale, "sub.Tensor"), base)
        return add(machine, plain, scaled(machine, mul(machine, scale, lora_result)))

    def _norm(self, machine: Machine, weight: Value, lora_weight: Value) -> Value:
        """source: dora.py:DoraLinearLayer.get_weight_norm, outside the graph"""
        summed = add(machine, weight.detached(), scaled(machine, lora_weight.detached()))
        return machine.new((summed.shape[0],), summed.dtype, "linalg_vector_norm")


def wanted(machine: Machine, indices: Value, out: Value) -> Value:
    """Under transformers' checkpointing the input's embeddings, where they are frozen, are a leaf that asks for a gradient.

    source: transformers 5.23.0 modeling_utils.py: gradient_checkpointing_enable, enable_input_require_grads
    """
    hooked = machine.policy.checkpointing != "none" and machine.policy.asks_inputs
    if hooked and out.node is None and machine.recording and indices.storage.life.name == "input_ids":
        leaf = Leaf("", out.shape, out.dtype)
        leaf.meta = out.detached()  # AccumulateGrad holds its variable
        out.node = leaf
    return out


PLACE = re.compile(r"(encoder_layer_)?(\d+|\*|first|last|end)(-?(\d+|\*|first|last))*")
"""A place in a list of modules, as the machine names it; torchvision's ViT has a word before it."""


def counted(name: str) -> str:
    """A parameter's or module's name without the places it has in lists of modules, of which the machine plays some for all.

    Of layers that take turns, each kind has a place in the turn: ``*0``, ``*1``; of several kinds, each stretch one besides.

    >>> counted("h.0.attn.weight"), counted("h.*1.attn.weight"), counted("h.last.attn.weight")
    ('h.*.attn.weight', 'h.*.attn.weight', 'h.*.attn.weight')
    >>> counted("layers.0-last-0.mlp.weight"), counted("classifier.1.weight")
    ('layers.*.mlp.weight', 'classifier.*.weight')
    >>> counted("layers.encoder_layer_last.mlp.0.bias")
    'layers.encoder_layer_*.mlp.*.bias'
    """
    return ".".join((found[1] or "") + "*" if (found := PLACE.fullmatch(part)) else part for part in name.split("."))
