"""How ``nn.MultiheadAttention`` runs over one input, without weights asked for.

source: pytorch 2.13.0 torch/nn/modules/activation.py:MultiheadAttention.forward; torch/nn/functional.py:
multi_head_attention_forward, _in_projection_packed
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memcalc.play.attention import attend
from memcalc.play.inplace import added_in_place
from memcalc.play.machine import Machine
from memcalc.play.matmul import linear
from memcalc.play.reshape import contiguous, merge_dims, permute, select, split_dim, transpose
from memcalc.play.values import Value

if TYPE_CHECKING:
    from memcalc.layers.vision import TorchAttention


def packed(machine: Machine, layer: TorchAttention, hidden: Value) -> Value:
    """``(rows, tokens, hidden)`` to the same, by way of ``(tokens, rows, hidden)``."""
    query = transpose(machine, hidden, 1, 0)
    tokens, rows, _ = query.shape
    query, key, value = _projected(machine, layer, query)
    query, key, value = (_headed(machine, layer, each, rows) for each in (query, key, value))
    out = attend(machine, query, key, value, probability=layer.dropout)
    out = contiguous(machine, permute(machine, out, (2, 0, 1, 3)))
    out = merge_dims(machine, merge_dims(machine, out, 2, 3), 0, 1)
    out = machine.call("out_proj", layer.output.play, machine, out)
    return transpose(machine, split_dim(machine, out, 0, (tokens, rows)), 1, 0)


def _projected(machine: Machine, layer: TorchAttention, value: Value) -> tuple[Value, Value, Value]:
    """Queries, keys and values by one matrix, then side by side in memory."""
    weight = machine.parameter("in_proj_weight", (3 * layer.hidden, layer.hidden), "linear")
    bias = machine.parameter("in_proj_bias", (3 * layer.hidden,), "linear")
    made = strided_linear(machine, value, weight, bias)
    made = permute(machine, split_dim(machine, made, 2, (3, layer.hidden)), (2, 0, 1, 3))
    made = contiguous(machine, made)
    return select(machine, made, 0), select(machine, made, 0), select(machine, made, 0)


def strided_linear(machine: Machine, value: Value, weight: Value, bias: Value) -> Value:
    """A linear layer of what does not lie in order: a product of its copy, the bias added in place (Linear.cpp:linear)."""
    if machine.same(value.shape[1], 1):
        return linear(machine, contiguous(machine, value), weight, bias)
    if machine.autocast is not None:
        bias = machine.low(bias)
    return added_in_place(machine, linear(machine, value, weight), bias)


def _headed(machine: Machine, layer: TorchAttention, value: Value, rows: object) -> Value:
    """``(tokens, rows, hidden)`` as ``(rows, heads, tokens, head dimension)``."""
    value = split_dim(machine, value, 2, (layer.heads, layer.hidden // layer.heads))
    value = transpose(machine, merge_dims(machine, value, 1, 2), 0, 1)
    return split_dim(machine, value, 0, (rows, layer.heads))  # type: ignore[arg-type]
